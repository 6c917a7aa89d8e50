"""The kernel classes: the conformance kit, what they refuse, what the plugin declares."""

from __future__ import annotations

from typing import Any

import pytest
import qcore
import torch
from cpu_oracle import assert_close
from qcore.errors import KernelRefusedError
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import process_weights
from qcore.layers import Int8ScaledMMLinearLayerConfig, MPLinearLayerConfig
from qcore.numerics.dequantize import dequantize_weight
from qcore.registry.entry import RegisteredKernel
from qcore.testing import KernelConformance, make_layer, random_input, random_tensors
from qcore_cpu import library, plugin, zentorch_support
from qcore_cpu.gguf import CPUGGUFInt8LinearKernel, CPUGGUFLinearKernel
from qcore_cpu.int8 import CPUInt8ScaledMMLinearKernel
from qcore_cpu.moe import CPUMoeMxfp4Kernel, CPUMoeWNA16Kernel
from qcore_cpu.wfp_blocks import CPUMxFp4LinearKernel, CPUMxfp8LinearKernel, CPUNvFp4LinearKernel
from qcore_cpu.wfp_codebook import CPUCodebookLinearKernel
from qcore_cpu.wfp_fp8 import CPUFp8BlockScaledMMLinearKernel, CPUFP8ScaledMMLinearKernel
from qcore_cpu.wna16 import CPUWNA16LinearKernel
from qcore_cpu.wna16_int8 import CPUWNA8LinearKernel, CPUWNA16Int8LinearKernel

SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}


class TestWNA16(KernelConformance):
    kernel_class = CPUWNA16LinearKernel
    spec = SPECS["CPUWNA16LinearKernel"]


class TestWNA8(KernelConformance):
    kernel_class = CPUWNA8LinearKernel
    spec = SPECS["CPUWNA8LinearKernel"]


class TestWNA16Int8(KernelConformance):
    kernel_class = CPUWNA16Int8LinearKernel
    spec = SPECS["CPUWNA16Int8LinearKernel"]
    # Of 128 normal inputs the largest is 4.2 deviations at most, so a unit is 4.2 / 127 of one, and
    # rounding to it has a deviation of 4.2 / 127 / sqrt(12) = 0.0096: five times that, among many.
    tolerance = 0.05


class TestInt8(KernelConformance):
    kernel_class = CPUInt8ScaledMMLinearKernel
    spec = SPECS["CPUInt8ScaledMMLinearKernel"]


class TestGGUF(KernelConformance):
    kernel_class = CPUGGUFLinearKernel
    spec = SPECS["CPUGGUFLinearKernel"]


class TestGGUFInt8(KernelConformance):
    kernel_class = CPUGGUFInt8LinearKernel
    spec = SPECS["CPUGGUFInt8LinearKernel"]
    tolerance = 0.05  # as above; of fewer inputs the largest is less


class TestFP8(KernelConformance):
    kernel_class = CPUFP8ScaledMMLinearKernel
    spec = SPECS["CPUFP8ScaledMMLinearKernel"]


class TestFp8Block(KernelConformance):
    kernel_class = CPUFp8BlockScaledMMLinearKernel
    spec = SPECS["CPUFp8BlockScaledMMLinearKernel"]


class TestMxfp8(KernelConformance):
    kernel_class = CPUMxfp8LinearKernel
    spec = SPECS["CPUMxfp8LinearKernel"]


class TestMxFp4(KernelConformance):
    kernel_class = CPUMxFp4LinearKernel
    spec = SPECS["CPUMxFp4LinearKernel"]


class TestNvFp4(KernelConformance):
    kernel_class = CPUNvFp4LinearKernel
    spec = SPECS["CPUNvFp4LinearKernel"]


class TestCodebook(KernelConformance):
    kernel_class = CPUCodebookLinearKernel
    spec = SPECS["CPUCodebookLinearKernel"]


class TestMoeWNA16(KernelConformance):
    kernel_class = CPUMoeWNA16Kernel
    spec = SPECS["CPUMoeWNA16Kernel"]


class TestMoeMxfp4(KernelConformance):
    kernel_class = CPUMoeMxfp4Kernel
    spec = SPECS["CPUMoeMxfp4Kernel"]


def _mp(**changes: Any) -> MPLinearLayerConfig:
    fields: dict[str, Any] = {
        "full_weight_shape": (96, 40),
        "partition_weight_shape": (96, 40),
        "weight_type": scalar_types.uint4b8,
        "act_type": torch.float32,
        "group_size": 32,
        "zero_points": False,
    }
    return MPLinearLayerConfig(**{**fields, **changes})


def _int8(**changes: Any) -> Int8ScaledMMLinearLayerConfig:
    fields: dict[str, Any] = {
        "is_static_input_scheme": False,
        "is_channelwise": True,
        "input_symmetric": True,
        "weight_shape": (40, 96),
    }
    return Int8ScaledMMLinearLayerConfig(**{**fields, **changes})


def _packed(kernel: Any, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    layer = make_layer(kernel.config, tensors)
    process_weights(kernel, layer)
    return layer


def test_names_of_the_layer_s_own() -> None:
    config = _mp()
    tensors = random_tensors(config)
    layer = torch.nn.Module()
    layer.qweight = torch.nn.Parameter(tensors["weight_packed"], requires_grad=False)
    layer.scales = torch.nn.Parameter(tensors["weight_scale"], requires_grad=False)
    kernel = CPUWNA16LinearKernel(config, "qweight", "scales", "qzeros", "g_idx")
    process_weights(kernel, layer)
    x = torch.randn(3, 96)
    weight = dequantize_weight(config, tensors, torch.float64)
    assert_close(kernel.apply_weights(layer, x), x, weight)

    names = ["w", "s", "i", "z"]
    config8 = _int8()
    tensors8 = random_tensors(config8)
    layer = torch.nn.Module()
    layer.w = torch.nn.Parameter(tensors8["weight"], requires_grad=False)
    layer.s = torch.nn.Parameter(tensors8["weight_scale"], requires_grad=False)
    kernel8 = CPUInt8ScaledMMLinearKernel(config8, names)
    process_weights(kernel8, layer)
    assert kernel8.apply_weights(layer, x).shape == (3, 40)


def test_weights_loaded_anew_need_no_permutation_any_more() -> None:
    """What the first packing left in the layer must not be used by the second."""
    config = _mp(has_g_idx=True)
    tensors = random_tensors(config)
    tensors["weight_g_idx"] = (torch.arange(96) // 32)[torch.randperm(96)].to(torch.int32)
    layer = _packed(CPUWNA16LinearKernel(config), tensors)
    tensors["weight_g_idx"] = (torch.arange(96) // 32).to(torch.int32)
    for name, tensor in tensors.items():
        setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False))
    kernel = CPUWNA16LinearKernel(config)
    process_weights(kernel, layer)
    x = torch.randn(3, 96)
    assert_close(
        kernel.apply_weights(layer, x), x, dequantize_weight(config, tensors, torch.float64)
    )


@pytest.mark.parametrize("compile_layer", [False, True])
def test_module_with_shaped_strided_input(compile_layer: bool) -> None:
    config = _mp(out_type=torch.bfloat16)
    tensors = random_tensors(config)
    kernel = CPUWNA16LinearKernel(config)
    layer = _packed(kernel, tensors)
    weight = dequantize_weight(config, tensors, torch.float64)

    def run(x: torch.Tensor) -> torch.Tensor:
        return kernel.apply_weights(layer, x)

    torch._dynamo.reset()
    call = torch.compile(run, fullgraph=True, backend="aot_eager") if compile_layer else run
    for x in (torch.randn(96), torch.randn(2, 3, 96), torch.randn(5, 192)[:, ::2]):
        out = call(x)
        assert out.dtype == torch.bfloat16
        assert_close(out.reshape(-1, 40), x.reshape(-1, 96), weight)


def test_refusals() -> None:
    able, reason = CPUWNA16LinearKernel.can_implement(_mp(act_type=torch.float8_e4m3fn))
    assert not able
    assert "float8_e4m3fn activations are not implemented" in str(reason)
    with pytest.raises(KernelRefusedError, match="float8_e4m3fn"):
        CPUWNA16LinearKernel(_mp(act_type=torch.float8_e4m3fn))
    able, reason = CPUInt8ScaledMMLinearKernel.can_implement(_int8(weight_shape=(8, 65537)))
    assert not able
    assert "K=65537" in str(reason)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fused_int8_layer_with_a_scale_for_each_part(static: bool, symmetric: bool) -> None:
    """Each part's scale becomes its channels', and the parts' input is quantized once."""
    config = _int8(
        is_channelwise=False,
        is_fused_module=True,
        is_static_input_scheme=static,
        input_symmetric=symmetric,
    )
    codes = torch.randint(-128, 128, (40, 96), dtype=torch.int8)
    scales = torch.tensor([0.01, 0.003])
    tensors = {"weight": codes, "weight_scale": scales}
    x = torch.rand(5, 96) * 6 - (3 if symmetric else 0)
    step = torch.full((5, 1), 3 / 127 if symmetric else 6 / 255)
    if static:
        tensors["input_scale"] = torch.tensor([step[0, 0], step[0, 0] / 2])
        if not symmetric:
            tensors["input_zero_point"] = torch.tensor([-128, -128], dtype=torch.int32)
    layer = make_layer(config, tensors)
    layer.logical_widths = [24, 16]
    kernel = CPUInt8ScaledMMLinearKernel(config)
    process_weights(kernel, layer)
    widths = torch.tensor([24, 16])
    weight = codes.double() * scales.double().repeat_interleave(widths)[:, None]
    error = (kernel.apply_weights(layer, x).double() - x.double() @ weight.t()).abs()
    half_steps = step.double() * 0.51 * weight.abs().sum(1)
    assert bool((error <= half_steps).all())
    assert float(error.mean() / half_steps.mean()) < 0.2


def test_compiled_int8_layer() -> None:
    config = _int8()
    kernel = CPUInt8ScaledMMLinearKernel(config)
    layer = _packed(kernel, random_tensors(config))
    torch._dynamo.reset()
    call = torch.compile(
        lambda x: kernel.apply_weights(layer, x), fullgraph=True, backend="aot_eager"
    )
    for x in (torch.randn(96), torch.randn(2, 3, 96), torch.randn(5, 192)[:, ::2]):
        assert torch.equal(call(x), kernel.apply_weights(layer, x))


def test_not_supported_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "refusal", lambda: "the library is gone")
    for kernel in (
        CPUWNA16LinearKernel,
        CPUWNA8LinearKernel,
        CPUWNA16Int8LinearKernel,
        CPUInt8ScaledMMLinearKernel,
        CPUGGUFLinearKernel,
        CPUGGUFInt8LinearKernel,
        CPUFP8ScaledMMLinearKernel,
        CPUFp8BlockScaledMMLinearKernel,
        CPUMxfp8LinearKernel,
        CPUMxFp4LinearKernel,
        CPUNvFp4LinearKernel,
        CPUCodebookLinearKernel,
        CPUMoeWNA16Kernel,
        CPUMoeMxfp4Kernel,
    ):
        assert kernel.is_supported() == (False, "the library is gone")


def test_int8_activations_must_be_allowed() -> None:
    """By default the exact kernel runs, and the decision says what the other one would do."""
    config = _mp()
    decision = qcore.select(config, "cpu")
    assert decision.kernel_class is CPUWNA16LinearKernel
    assert "CPUWNA16Int8LinearKernel" in str(decision)
    allowed = qcore.select(config, "cpu", settings=qcore.Settings(approximate=True))
    assert allowed.kernel_class is CPUWNA16Int8LinearKernel
    as_int8 = _mp(act_type=torch.int8, out_type=torch.bfloat16)
    assert qcore.select(as_int8, "cpu").kernel_class is CPUWNA8LinearKernel
    able, reason = CPUWNA8LinearKernel.can_implement(config)
    assert not able
    assert "int8 is meant" in str(reason)


def test_input_of_another_dtype_than_the_config_s() -> None:
    config = _mp(act_type=torch.bfloat16)
    kernel = CPUWNA16LinearKernel(config)
    layer = _packed(kernel, random_tensors(config))
    assert kernel.apply_weights(layer, random_input(_mp(), 3)).dtype == torch.float32


# -- the plugin ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_declared_kernels_are_there(name: str) -> None:
    loaded = RegisteredKernel(SPECS[name], "cpu", "qcore-cpu").load()
    assert loaded.__name__ == name
    assert loaded.kernel_type == SPECS[name].kernel_type


def test_plugin_names_its_backends() -> None:
    info = plugin.qcore_plugin()
    assert {spec.backend for spec in SPECS.values()} == set(info.backends)


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zentorch_support, "is_installed", lambda: False)
    (line,) = plugin.qcore_doctor()
    assert line.ok
    assert f"uses {library.isa()}" in line.text
    monkeypatch.setattr(library, "refusal", lambda: "it does not load")
    (line,) = plugin.qcore_doctor()
    assert not line.ok
    assert line.text == "it does not load"
