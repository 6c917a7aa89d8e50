"""The zentorch kernels. Where zentorch cannot run, only that they say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_oracle import quantize
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import process_weights
from qcore.layers import Int8ScaledMMLinearLayerConfig, MPLinearLayerConfig
from qcore.numerics.dequantize import dequantize_weight
from qcore.testing import Arithmetic, KernelConformance, make_layer, random_tensors
from qcore_cpu import plugin, zentorch_support
from qcore_cpu.wna16 import CPUWNA16LinearKernel
from qcore_cpu.zentorch_int8 import ZentorchInt8ScaledMMLinearKernel
from qcore_cpu.zentorch_wna16 import ZentorchWNA16LinearKernel

SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}
KERNELS = (ZentorchWNA16LinearKernel, ZentorchInt8ScaledMMLinearKernel)
WHY = zentorch_support.refusal("zentorch_woq_linear", "zentorch_dynamic_qlinear")
needs_zentorch = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def _mp(**changes: Any) -> MPLinearLayerConfig:
    fields: dict[str, Any] = {
        "full_weight_shape": (256, 64),
        "partition_weight_shape": (256, 64),
        "weight_type": scalar_types.uint4b8,
        "act_type": torch.bfloat16,
        "group_size": 32,
        "zero_points": False,
    }
    return MPLinearLayerConfig(**{**fields, **changes})


def _int8(**changes: Any) -> Int8ScaledMMLinearLayerConfig:
    fields: dict[str, Any] = {
        "is_static_input_scheme": False,
        "is_channelwise": True,
        "input_symmetric": True,
        "weight_shape": (64, 256),
        "input_dtype": torch.bfloat16,
    }
    return Int8ScaledMMLinearLayerConfig(**{**fields, **changes})


def _run(kernel: Any, tensors: dict[str, torch.Tensor], *xs: torch.Tensor) -> list[torch.Tensor]:
    layer = make_layer(kernel.config, tensors)
    process_weights(kernel, layer)
    return [kernel.apply_weights(layer, x) for x in xs]


# -- everywhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["amd", "avx512_vnni", "avx512_bf16"])
def test_refused_where_the_processor_lacks_something(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the ops are registered: they would return garbage there."""
    features = frozenset({*zentorch_support.NEEDED_FEATURES} - {missing})
    monkeypatch.setattr(zentorch_support, "current_cpu_features", lambda: features)
    for kernel in KERNELS:
        able, reason = kernel.is_supported()
        assert not able
        assert f"need {missing}, which this processor has not" in str(reason)


def test_refused_where_zentorch_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    features = frozenset(zentorch_support.NEEDED_FEATURES)
    monkeypatch.setattr(zentorch_support, "current_cpu_features", lambda: features)
    monkeypatch.setattr(zentorch_support, "is_installed", lambda: False)
    assert zentorch_support.refusal() == "zentorch is not installed"
    monkeypatch.setattr(zentorch_support, "is_installed", lambda: True)
    monkeypatch.setattr(zentorch_support, "_import_error", lambda: "importing zentorch failed: x")
    assert zentorch_support.refusal() == "importing zentorch failed: x"
    monkeypatch.setattr(zentorch_support, "_import_error", lambda: None)
    assert "has no op zentorch_not_there" in str(zentorch_support.refusal("zentorch_not_there"))


def test_declared_features_are_those_asked_for() -> None:
    for kernel in KERNELS:
        spec = SPECS[kernel.__name__]
        assert spec.cpu_features == zentorch_support.NEEDED_FEATURES
        assert spec.modules == ("zentorch",)


def test_int8_refusals() -> None:
    for config, words in (
        (_int8(is_static_input_scheme=True), "static activation scales"),
        (_int8(input_symmetric=False), "asymmetric"),
        (_int8(is_channelwise=False, is_fused_module=True), "channel scales"),
        (_int8(input_dtype=torch.float16), "float16 activations"),
        (_int8(input_dtype=None), "any dtype activations"),
        (_int8(out_dtype=torch.float32), "float32 output"),
        (_int8(weight_shape=None), "weight_shape is not known"),
        (_int8(weight_shape=(17, 64)), "N=17, K=64; N must be a multiple of 16"),
        (_int8(weight_shape=(64, 77)), "K of 4"),
    ):
        able, reason = ZentorchInt8ScaledMMLinearKernel.can_implement(config)
        assert not able
        assert words in str(reason)


FALLBACKS = (
    (_mp(weight_type=scalar_types.uint4, zero_points=True), "uint4 weights"),
    (_mp(weight_type=scalar_types.uint8b128), "uint8b128 weights"),
    (_mp(has_g_idx=True), "g_idx"),
    (_mp(act_type=torch.float16), "not bfloat16"),
    (_mp(out_type=torch.float32), "output that is not bfloat16"),
    (_mp(full_weight_shape=(100, 64), partition_weight_shape=(100, 64)), "multiple of 8"),
    (_mp(group_size=48), "multiple of group_size=48"),
)


@pytest.mark.parametrize(("config", "words"), FALLBACKS)
def test_other_layers_go_to_the_fallback(config: MPLinearLayerConfig, words: str) -> None:
    assert words in str(ZentorchWNA16LinearKernel.zentorch_refusal(config))
    kernel = ZentorchWNA16LinearKernel(config)
    assert isinstance(kernel.fallback, CPUWNA16LinearKernel)
    x = torch.randn(3, config.in_features, dtype=config.act_type)
    tensors = random_tensors(config)
    (mine,), (its,) = (_run(k, tensors, x) for k in (kernel, CPUWNA16LinearKernel(config)))
    assert torch.equal(mine, its)


# -- where zentorch runs -------------------------------------------------------------------------


@needs_zentorch
class TestZentorchInt8(KernelConformance):
    kernel_class = ZentorchInt8ScaledMMLinearKernel
    spec = SPECS["ZentorchInt8ScaledMMLinearKernel"]


@needs_zentorch
class TestZentorchWNA16(KernelConformance):
    kernel_class = ZentorchWNA16LinearKernel
    spec = SPECS["ZentorchWNA16LinearKernel"]
    arithmetic = Arithmetic(weights=torch.bfloat16)
    tolerance = 0.0


@needs_zentorch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_exact(dtype: torch.dtype) -> None:
    for N, K in ((16, 4), (48, 100), (16, 640), (640, 640), (64, 256)):
        config = _int8(weight_shape=(N, K), input_dtype=dtype)
        tensors = {
            "weight": torch.randint(-128, 128, (N, K), dtype=torch.int8),
            "weight_scale": torch.rand(N, 1) * 0.01 + 0.001,
        }
        kernel = ZentorchInt8ScaledMMLinearKernel(config)
        xs = [torch.randn(M, K).to(dtype) for M in (0, 1, 2, 8, 9, 33)]
        weight = tensors["weight"].double() * tensors["weight_scale"].double()
        for x, out in zip(xs, _run(kernel, tensors, *xs), strict=True):
            codes, scale, _ = quantize(x, True) if len(x) else (x, x[:, :1], None)
            expected = (codes.double() @ weight.t()) * scale.double()
            rtol = 1e-5 if dtype == torch.float32 else 2.0**-8
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-5)


@needs_zentorch
def test_int8_shows_rows_that_are_not_finite() -> None:
    kernel = ZentorchInt8ScaledMMLinearKernel(_int8(input_dtype=torch.float32))
    x = torch.randn(4, 256)
    x[1, 3], x[3, 200] = float("nan"), float("inf")
    (out,) = _run(kernel, random_tensors(kernel.config), x)
    assert out.isnan().all(1).tolist() == [False, True, False, True]
    assert bool(out[::2].isfinite().all())


@needs_zentorch
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_wna16_rounds_no_more_than_declared(scale_dtype: torch.dtype) -> None:
    for weight_type in (scalar_types.uint4b8, scalar_types.int4):
        for N, K, group_size in ((64, 256, 32), (17, 40, 8), (640, 640, 128), (48, 1024, -1)):
            shape = (K, N)
            config = _mp(
                full_weight_shape=shape,
                partition_weight_shape=shape,
                group_size=group_size,
                weight_type=weight_type,
            )
            kernel = ZentorchWNA16LinearKernel(config)
            assert kernel.fallback is None
            tensors = random_tensors(config)
            tensors["weight_scale"] = tensors["weight_scale"].to(scale_dtype)
            weight = dequantize_weight(config, tensors, torch.float64)
            xs = [torch.randn(M, K, dtype=torch.bfloat16) for M in (0, 1, 4, 33)]
            for x, out in zip(xs, _run(kernel, tensors, *xs), strict=True):
                expected = x.double() @ weight.t()
                assert out.shape == expected.shape
                assert (out.double() - expected).norm() <= 6e-3 * expected.norm()


@needs_zentorch
def test_a_freed_layer_s_result_does_not_come_back() -> None:
    """zentorch remembers weights by address; `woq_linear` never lets an address be used again."""
    config = _mp()
    x = torch.randn(4, 256, dtype=torch.bfloat16)
    for seed in range(30):
        tensors = random_tensors(config, seed)
        (out,) = _run(ZentorchWNA16LinearKernel(config), tensors, x)
        expected = x.double() @ dequantize_weight(config, tensors, torch.float64).t()
        assert (out.double() - expected).norm() <= 6e-3 * expected.norm()
