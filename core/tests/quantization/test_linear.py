from __future__ import annotations

import copy

import pytest
import torch
from qcore import Settings, errors
from qcore.kernels import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantization import CanonicalLinear, QuantizedLinear
from qcore.quantization.integer import IntegerWeights
from qcore.registry import get_registry
from qcore.selection import register_linear_kernel


def layer(K=64, N=16, zero_points=True) -> CanonicalLinear:
    g = torch.Generator().manual_seed(0)
    config = IntegerWeights(4, 16, zero_points).layer_config(K, N, torch.float32)
    assert isinstance(config, MPLinearLayerConfig)
    words = torch.randint(-(2**31), 2**31, (N, K // 8), generator=g).to(torch.int32)
    tensors = {"weight_packed": words, "weight_scale": torch.rand(N, K // 16, generator=g)}
    if zero_points:
        tensors["weight_zero_point"] = torch.randint(
            -(2**31), 2**31, (N // 8, K // 16), generator=g
        ).to(torch.int32)
    return CanonicalLinear(config, tensors)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("leading", [(), (3,), (2, 5)])
def test_forward(with_bias, leading):
    canonical = layer()
    bias = torch.randn(16) if with_bias else None
    module = QuantizedLinear(canonical, bias, prefix="m.q")
    x = torch.randn(*leading, 64)
    weight = dequantize_weight(canonical.config, canonical.tensors)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    assert module(x).shape == (*leading, 16)


def test_attributes_that_kernels_of_vllm_read():
    module = QuantizedLinear(layer(zero_points=False), torch.zeros(16), prefix="m.q")
    assert (module.in_features, module.out_features) == (64, 16)
    assert (module.input_size_per_partition, module.output_size_per_partition) == (64, 16)
    assert module.logical_widths == [16]
    assert module.params_dtype == module.orig_dtype == torch.float32
    assert module.prefix == "m.q"
    packed = module.weight_packed
    assert (packed.input_dim, packed.output_dim, packed.packed_dim, packed.packed_factor) == (
        1,
        0,
        1,
        8,
    )
    assert module.weight_zero_point is None
    assert not any(p.requires_grad for p in module.parameters())
    assert module.decision.kernel_name == type(module.kernel).__name__
    text = repr(module)
    assert "in_features=64, out_features=16, bias=True" in text
    assert type(module.kernel).__name__ in text


class TransposingKernel(MPLinearKernel):
    """A kernel with a layout of its own."""

    @classmethod
    def can_implement(cls, config):
        return config.zero_points, None if config.zero_points else "zero points only"

    def pack_weights(self, tensors):
        if (tensors["weight_packed"] == 0).all():
            raise ValueError("nothing to pack")
        return {"weight_packed": tensors["weight_packed"].t().contiguous()}

    def apply_weights(self, layer, x, bias=None):
        return x.new_zeros(*x.shape[:-1], layer.out_features)


@pytest.fixture
def transposing():
    register_linear_kernel(TransposingKernel, "cpu")
    yield
    get_registry().unregister(["TransposingKernel"])


def test_kernels_layout_replaces_the_canonical_one(transposing):
    module = QuantizedLinear(layer())
    assert isinstance(module.kernel, TransposingKernel)
    assert module.weight_packed.shape == (8, 16)
    assert module.weight_scale is None
    canonical = layer()
    canonical.tensors["weight_packed"].zero_()
    with pytest.raises(ValueError, match="nothing to pack"):
        QuantizedLinear(canonical)


def test_settings_reach_selection(transposing):
    module = QuantizedLinear(
        layer(), settings=Settings(disabled_kernels=frozenset({"TransposingKernel"}))
    )
    assert not isinstance(module.kernel, TransposingKernel)


def test_tensors_that_do_not_fit():
    canonical = layer()
    with pytest.raises(errors.WeightError, match=r"m\.q: bias has shape \[3\]"):
        QuantizedLinear(canonical, torch.zeros(3), prefix="m.q")
    broken = {**canonical.tensors, "weight_scale": torch.zeros(3, 3)}
    with pytest.raises(errors.WeightError, match=r"m\.q: tensor 'weight_scale' has shape"):
        QuantizedLinear(CanonicalLinear(canonical.config, broken), prefix="m.q")


def test_moving_is_refused_and_leaves_the_layer_as_it_was():
    module = QuantizedLinear(layer(), prefix="m.q")
    before = {name: t.clone() for name, t in module.state_dict().items()}
    for move in (lambda: module.half(), lambda: module.to("meta"), lambda: module.double()):
        with pytest.raises(errors.WeightError, match=r"m\.q: .*load_model"):
            move()
    module.to("cpu").float().eval()
    after = module.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items())


def test_compiles_without_a_break():
    module = QuantizedLinear(layer())
    x = torch.randn(3, 64)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_copies_run():
    module = QuantizedLinear(layer())
    twin = copy.deepcopy(module)
    x = torch.randn(3, 64)
    assert torch.equal(twin(x), module(x))
    assert twin.weight_packed.data_ptr() != module.weight_packed.data_ptr()
