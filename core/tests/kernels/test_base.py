import pytest
import torch
from qcore.errors import KernelRefusedError, RegistrationError, WeightError
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import (
    CompositeLinearKernel,
    MPLinearKernel,
    MPLinearLayerConfig,
    answer,
    permute_param_layout_,
    process_weights,
    replace_parameter,
    set_weight_attrs,
)
from qcore.kernels.base import tensors_of

CONFIG = MPLinearLayerConfig((32, 8), (32, 8), scalar_types.uint4b8, torch.float32, 16, False)


def make_layer():
    layer = torch.nn.Module()
    layer.register_parameter(
        "weight_packed",
        torch.nn.Parameter(torch.arange(32, dtype=torch.int32).reshape(8, 4), requires_grad=False),
    )
    layer.register_buffer("weight_scale", torch.ones(8, 2))
    return layer


class Transposing(MPLinearKernel):
    """Packs by transposing; a pure `pack_weights`."""

    @classmethod
    def can_implement(cls, config):
        return answer(config.has_g_idx and "g_idx is not implemented")

    def pack_weights(self, tensors):
        return {
            "weight_packed": tensors["weight_packed"].t().contiguous(),
            "extra": tensors["weight_scale"] * 2,
        }

    def apply_weights(self, layer, x, bias=None):
        return x.new_full((*x.shape[:-1], self.config.out_features), 1.0)


class Second(Transposing):
    def apply_weights(self, layer, x, bias=None):
        return x.new_full((*x.shape[:-1], self.config.out_features), 2.0)


def snapshot(layer):
    return {
        name: (id(tensor), tensor.data_ptr(), tensor.clone())
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
    }


def same(before, after):
    return before.keys() == after.keys() and all(
        a[:2] == b[:2] and torch.equal(a[2], b[2])
        for a, b in zip(before.values(), after.values(), strict=True)
    )


def test_answer():
    assert answer(None, False, "") == (True, None)
    assert answer("a", None, "b") == (False, "a; b")
    with pytest.raises(TypeError, match="words"):
        answer(True)


def test_a_refused_config_cannot_be_built():
    config = MPLinearLayerConfig(
        (32, 8), (32, 8), scalar_types.uint4b8, torch.float32, 16, False, has_g_idx=True
    )
    with pytest.raises(KernelRefusedError, match=r"Transposing.*g_idx"):
        Transposing(config)


def test_packing_once():
    layer, kernel = make_layer(), Transposing(CONFIG)
    process_weights(kernel, layer)
    assert layer.weight_packed.shape == (4, 8)
    assert layer.weight_scale is None
    assert layer.extra.tolist() == [[2.0, 2.0]] * 8
    before = snapshot(layer)
    process_weights(kernel, layer)
    kernel.process_weights_after_loading(layer)
    assert same(before, snapshot(layer))


@pytest.mark.parametrize("when", ["missing", "shape", "kernel"])
def test_a_failure_leaves_the_layer_as_it_was(when):
    layer = make_layer()
    if when == "missing":
        layer.weight_scale = None
    if when == "shape":
        layer.weight_scale = torch.ones(8, 3)

    class Failing(Transposing):
        def process_weights_after_loading(self, layer):
            super().process_weights_after_loading(layer)
            layer.weight_packed.data = torch.zeros(1)
            layer.leftover = 1
            raise RuntimeError("boom")

    before = snapshot(layer)
    with pytest.raises(WeightError if when != "kernel" else RuntimeError):
        process_weights(Failing(CONFIG), layer)
    assert same(before, snapshot(layer))
    assert not hasattr(layer, "leftover")
    assert not hasattr(layer, "extra")


def test_other_names_for_the_layers_tensors():
    layer = torch.nn.Module()
    layer.qweight = torch.nn.Parameter(torch.zeros(8, 4, dtype=torch.int32), requires_grad=False)
    layer.scales = torch.nn.Parameter(torch.ones(8, 2))
    kernel = Transposing(CONFIG, "qweight", "scales", None, None)
    process_weights(kernel, layer)
    assert layer.qweight.shape == (4, 8)
    codes, scales, zeros, g_idx = Second(CONFIG, "qweight", "extra", None)._get_weight_params(layer)
    assert codes is layer.qweight
    assert scales is layer.extra
    assert (zeros, g_idx) == (None, None)


def test_replace_parameter_keeps_memory_and_marks():
    layer = make_layer()
    layer.weight_packed.weight_loader = "loader"
    pointer = layer.weight_packed.data_ptr()
    replace_parameter(layer, "weight_packed", torch.zeros(8, 4, dtype=torch.int32))
    assert layer.weight_packed.data_ptr() == pointer
    assert int(layer.weight_packed.sum()) == 0
    replace_parameter(layer, "weight_packed", torch.zeros(2, 2))
    assert layer.weight_packed.shape == (2, 2)
    assert layer.weight_packed.weight_loader == "loader"
    replace_parameter(layer, "weight_scale", torch.zeros(1))
    assert isinstance(layer.weight_scale, torch.nn.Parameter)


def test_permute_and_attrs():
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    set_weight_attrs(weight, {"input_dim": 1, "output_dim": 0, "packed_dim": 1})
    with pytest.raises(WeightError, match="already"):
        set_weight_attrs(weight, {"input_dim": 1})
    permute_param_layout_(weight, input_dim=0, output_dim=1, packed_dim=0)
    assert weight.shape == (3, 2)
    assert (weight.input_dim, weight.output_dim, weight.packed_dim) == (0, 1, 0)
    permute_param_layout_(weight, input_dim=0, output_dim=1)
    assert weight.shape == (3, 2)
    with pytest.raises(WeightError, match="packed_dim"):
        permute_param_layout_(weight, input_dim=0, output_dim=1, packed_dim=1)
    with pytest.raises(WeightError, match="annotated"):
        permute_param_layout_(torch.zeros(2, 2), input_dim=0, output_dim=1)


class Able(Transposing):
    @classmethod
    def can_implement(cls, config):
        return answer()


class ByM(CompositeLinearKernel[MPLinearLayerConfig]):
    kernel_type = "mp"
    parts = ((4, Transposing), (None, Second))


class ByMSeparate(ByM):
    shared_weights = False


@pytest.mark.parametrize("composite", [ByM, ByMSeparate])
def test_composite_dispatches_by_m(composite):
    layer, kernel = make_layer(), composite.from_config(CONFIG)
    process_weights(kernel, layer)
    for M, expected in [(0, 1.0), (1, 1.0), (4, 1.0), (5, 2.0), (100, 2.0)]:
        out = kernel.apply_weights(layer, torch.zeros(M, 32))
        assert out.shape == (M, 8)
        assert (out == expected).all()
    assert (kernel.apply_weights(layer, torch.zeros(2, 3, 32)) == 2.0).all()


def test_composite_asks_its_parts():
    config = MPLinearLayerConfig(
        (32, 8), (32, 8), scalar_types.uint4b8, torch.float32, 16, False, has_g_idx=True
    )
    both = "its parts Transposing and Second: g_idx is not implemented"
    assert ByM.can_implement(config) == (False, both)
    one = type("One", (ByM,), {"parts": ((4, Able), (None, Second))})
    assert one.can_implement(config) == (False, "its part Second: g_idx is not implemented")
    assert ByM.is_supported() == (True, None)


def test_composite_has_a_least_capability_of_its_own():
    newer = type("Newer", (ByM,), {"get_min_capability": classmethod(lambda cls: 90)})
    assert newer.is_supported(80) == (False, "needs compute capability 90, this is 80")
    assert newer.is_supported(90) == ByM.is_supported(80) == (True, None)


@pytest.mark.parametrize("limits", [(), (4,), (None, 4), (8, 4, None), (4, 4, None)])
def test_composite_thresholds_are_checked(limits):
    with pytest.raises(RegistrationError, match="rise"):
        type("Bad", (CompositeLinearKernel,), {"parts": tuple((n, Second) for n in limits)})


def test_tensors_of_a_layer() -> None:
    """Parameters, and what is held otherwise; the name of the one that is missing."""
    layer = torch.nn.Module()
    layer.register_parameter("a", torch.nn.Parameter(torch.zeros(1), requires_grad=False))
    layer.register_buffer("b", torch.ones(2))
    layer.register_parameter("none", None)
    layer.plain = torch.ones(3)
    a, b, plain = tensors_of(layer, "a", "b", "plain")
    assert a is layer.a
    assert b is layer.b
    assert plain is layer.plain
    assert tensors_of(layer) == []
    assert tensors_of(layer, "a", None) == [layer.a, None]
    for name in ("none", "gone"):
        with pytest.raises(WeightError, match=f"no tensor '{name}'"):
            tensors_of(layer, "a", name)
