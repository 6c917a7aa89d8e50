"""The parts of the kit: grids, random tensors, the oracle, the isolated registry."""

from itertools import combinations

import pytest
import qcore
import torch
from qcore.errors import ConfigError
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import KERNEL_TYPES, MPLinearKernel
from qcore.layers import MPLinearLayerConfig
from qcore.layers.mixed_precision import MP_WEIGHT_TYPES
from qcore.layers.params import check_params
from qcore.numerics.dequantize import dequantize_expert, dequantize_weight
from qcore.plugin import API_VERSION, PluginInfo, hookimpl
from qcore.registry import get_registry
from qcore.testing import (
    Arithmetic,
    Oracle,
    check_kernel,
    check_numerics,
    conformance_configs,
    isolated_registry,
    make_layer,
    random_bias,
    random_input,
    random_tensors,
)
from qcore.testing.configs import label
from qcore.testing.covering import covering_array


def test_every_pair_of_values_occurs():
    axes = {"a": "wxyz", "b": (0, 1, 2), "c": (True, False), "d": (None, 1)}
    for strength in (2, 3):
        rows = covering_array(axes, strength)
        assert len(rows) < 48
        for names in combinations(axes, strength):
            seen = {tuple(row[name] for name in names) for row in rows}
            size = 1
            for name in names:
                size *= len(axes[name])
            assert len(seen) == size
    assert len(covering_array(axes, 9)) == 48
    assert rows == covering_array(axes, 3), "the same each time"


@pytest.mark.parametrize("kernel_type", KERNEL_TYPES)
def test_the_grid_is_small_and_its_labels_tell_the_layers_apart(kernel_type):
    configs = conformance_configs(kernel_type)
    assert 40 < len(configs) < 280
    assert len(set(configs)) == len(configs)
    assert {type(config) for config in configs} == {KERNEL_TYPES[kernel_type].config_class}
    assert len(conformance_configs(kernel_type, thorough=True)) > len(configs)
    assert len({label(config) for config in configs}) == len(configs)


def test_the_mp_grid_has_every_feature():
    configs = conformance_configs("mp")
    assert {c.weight_type for c in configs} == set(MP_WEIGHT_TYPES)
    assert {c.group_size for c in configs} >= {-1, 16, 32, 64, 128}
    assert any(c.group_size > c.in_features for c in configs)
    assert any(c.group_size > 0 and c.in_features % c.group_size for c in configs)
    assert {(c.zero_points, c.has_g_idx) for c in configs} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    assert {c.act_type for c in configs} >= {torch.float32, torch.float16, torch.bfloat16}
    assert any(c.full_weight_shape != c.partition_weight_shape for c in configs)


def test_a_kernel_for_common_layers_alone_gets_enough_of_them():
    def like_marlin(c):
        return (
            c.weight_type == scalar_types.uint4b8
            and c.act_type in (torch.float16, torch.bfloat16)
            and c.out_type is None
            and c.group_size in (-1, 32, 64, 128)
            and not c.has_g_idx
            and c.in_features % 128 == 0
            and c.out_features % 64 == 0
        )

    assert sum(map(like_marlin, conformance_configs("mp"))) > 10
    common = [
        c
        for c in conformance_configs("int8")
        if c.is_channelwise
        and c.input_symmetric
        and not c.is_static_input_scheme
        and c.weight_shape
        and c.out_features % 64 == 0
        and c.out_dtype is None
    ]
    assert len(common) > 5


def test_an_unknown_type_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="there are mp, int8"):
        conformance_configs("int3")


@pytest.mark.parametrize("kernel_type", KERNEL_TYPES)
def test_random_tensors_fit_and_are_reproducible(kernel_type):
    for config in conformance_configs(kernel_type)[::3]:
        for variant in range(3):
            tensors = random_tensors(config, 3, variant=variant)
            check_params(config.params(), tensors, "here")
            again = random_tensors(config, 3, variant=variant)
            for name, tensor in tensors.items():
                same = tensor.contiguous().reshape(-1).view(torch.uint8)
                assert torch.equal(same, again[name].contiguous().reshape(-1).view(torch.uint8))
            if KERNEL_TYPES[kernel_type].routed:
                weight = dequantize_expert(config, tensors, "w2", 0)
            else:
                weight = dequantize_weight(config, tensors)
            assert weight.isfinite().all()
        assert not torch.equal(random_input(config, 5, 1), random_input(config, 5, 2))


def test_a_made_layer_is_annotated_and_has_copies():
    config = MPLinearLayerConfig(
        (256, 64), (128, 64), scalar_types.uint4b8, torch.bfloat16, 32, False
    )
    tensors = random_tensors(config)
    layer = make_layer(config, tensors, random_bias(config))
    weight = layer.weight_packed
    assert (weight.input_dim, weight.output_dim, weight.packed_dim, weight.packed_factor) == (
        1, 0, 1, 8,
    )  # fmt: skip
    assert layer.weight_zero_point is None
    assert (layer.input_size, layer.input_size_per_partition) == (256, 128)
    assert layer.output_size_per_partition == 64
    weight.data.zero_()
    assert tensors["weight_packed"].any()
    assert layer.bias.dtype == torch.bfloat16


def test_shuffled_g_idx_refers_to_scales_that_are_there():
    for config in conformance_configs("mp"):
        if config.has_g_idx:
            for variant in range(2):
                tensors = random_tensors(config, variant=variant)
                g_idx, groups = tensors["weight_g_idx"], tensors["weight_scale"].shape[1]
                assert 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups


def _config(act=torch.float32, K=256, **more):
    return MPLinearLayerConfig((K, 64), (K, 64), scalar_types.uint4b8, act, 64, False, **more)


def test_the_allowance_follows_the_declared_arithmetic():
    config = _config(torch.bfloat16, out_type=torch.float32)
    tensors, x = random_tensors(config), random_input(config, 9)
    exact = Oracle(config, tensors).expect(x)
    rounded = Oracle(config, tensors, arithmetic=Arithmetic(weights="input")).expect(x)
    half = Oracle(config, tensors, arithmetic=Arithmetic(accumulate=torch.float16)).expect(x)
    assert torch.equal(exact.value, rounded.value)
    assert exact.allowed.max() < 1e-3 < rounded.allowed.max() < half.allowed.max()
    assert (exact.parts["operands"] == 0).all()


class Bfloat16Weights(MPLinearKernel):
    @classmethod
    def can_implement(cls, config):
        return True, None

    def pack_weights(self, tensors):
        return {"dense": dequantize_weight(self.config, tensors).bfloat16()}

    def apply_weights(self, layer, x, bias=None):
        out = x.float() @ layer.dense.float().t()
        out = out if bias is None else out + bias.float()
        return out.to(self.config.out_type or x.dtype)


def test_rounded_weights_are_wrong_unless_they_are_declared():
    configs = [_config(act, out_type=torch.float32) for act in (torch.float32, torch.bfloat16)]
    strict = check_kernel(
        Bfloat16Weights, configs=configs, checks=["check_numerics"], raise_on_failure=False
    )
    assert len(strict.failures) == 2
    declared = Arithmetic(weights=torch.bfloat16)
    report = check_kernel(
        Bfloat16Weights, configs=configs, arithmetic=declared, checks=["check_numerics"]
    )
    assert 0.1 < report.worst.ratio < 1.0


def test_one_check_on_one_layer_gives_its_worst_error():
    from qcore.reference.kernels import ReferenceMPLinearKernel

    outcome = check_numerics(ReferenceMPLinearKernel, _config())
    assert 0 < outcome.worst.ratio <= 1.0
    assert "uint4b8 g64" in str(outcome.worst)


def test_the_isolated_registry_has_what_it_is_given_and_is_gone_afterwards():
    class Plugin:
        @hookimpl
        def qcore_plugin(self):
            return PluginInfo("mine", API_VERSION, backends={"mine": "a test's own"})

    class Broken:
        @hookimpl
        def qcore_plugin(self):
            raise RuntimeError("on purpose")

    outside = get_registry()
    with isolated_registry(Plugin(), Broken()) as registry:
        assert get_registry() is registry
        assert "mine" in registry.backends()
        assert ["on purpose" in failure.reason for failure in registry.failures] == [True]
        qcore.register_linear_kernel(Bfloat16Weights, "cpu")
        assert qcore.select(_config(), "cpu").kernel_name == "Bfloat16Weights"
    assert get_registry() is outside
    with isolated_registry(reference=False):
        assert qcore.select(_config(), "cpu").chosen is None
