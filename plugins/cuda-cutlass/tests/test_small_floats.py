"""Layers of FP8, NVFP4, MXFP4 and MXFP8 weights, without a GPU: packing, refusals, fakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qcore.facts.quant_key import (
    FP8_DTYPE,
    GroupShape,
    QuantKey,
    ScaleDesc,
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)
from qcore.kernels import process_weights
from qcore.layers import (
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.numerics.small_floats import decode_e8m0
from qcore.registry import Evidence
from qcore.testing import make_layer, random_tensors
from qcore_cuda import plugin
from qcore_cuda.kernels import marlin_floats, small_floats
from qcore_cuda.kernels.gptq_packing import SHUFFLED
from small_float_oracle import float_values, scale_byte

BFLOAT = torch.bfloat16
Tensor = torch.Tensor


pytestmark = pytest.mark.usefixtures("compiled_library")


def fp8(key: Any = kFp8StaticChannelSym, **changes: Any) -> FP8ScaledMMLinearLayerConfig:
    return FP8ScaledMMLinearLayerConfig(
        **{
            "weight_quant_key": key,
            "activation_quant_key": None,
            "weight_shape": (40, 72),
            "input_dtype": BFLOAT,
            "out_dtype": BFLOAT,
            **changes,
        }
    )


def blocks(
    rows: int, columns: int, shape: tuple[int, int] = (150, 416), **changes: Any
) -> Fp8BlockScaledMMLinearLayerConfig:
    key = QuantKey(FP8_DTYPE, ScaleDesc(torch.float32, True, GroupShape(rows, columns)))
    given: dict[str, Any] = {"input_dtype": BFLOAT, "out_dtype": BFLOAT, **changes}
    given.setdefault("activation_quant_key", None)
    return Fp8BlockScaledMMLinearLayerConfig(key, weight_shape=shape, **given)


NVFP4 = NvFp4LinearLayerConfig((40, 80), None, BFLOAT)
MXFP4 = MxFp4LinearLayerConfig((40, 96), None, BFLOAT)
MXFP8 = Mxfp8LinearLayerConfig((40, 96), None, BFLOAT)
CLASSES = {
    "fp8": small_floats.HopperFP8ScaledMMLinearKernel,
    "fp8_block": small_floats.HopperFp8BlockScaledMMKernel,
    "nvfp4": small_floats.HopperNvFp4LinearKernel,
    "mxfp4": small_floats.HopperMxFp4LinearKernel,
    "mxfp8": small_floats.HopperMxfp8LinearKernel,
}
BLOCKS = [blocks(128, 128), blocks(64, 32), blocks(1, 4096), blocks(128, 128, (40, 72))]
LAYERS: list[Any] = [fp8(), fp8(kFp8StaticTensorSym), NVFP4, MXFP4, MXFP8, *BLOCKS]


def packed(config: Any, tensors: dict[str, Tensor]) -> tuple[Any, torch.nn.Module]:
    kernel = CLASSES[config.kernel_type].from_config(config)
    layer = make_layer(config, tensors)
    process_weights(kernel, layer)
    return kernel, layer


def unpacked(kernel: Any, layer: Any) -> Tensor:
    """The weight of a packed layer, float64 [K, N]: bit by bit from its words."""
    words = layer.weight.to(torch.int64) & 0xFFFFFFFF
    pack = 32 // kernel.bits
    codes = torch.empty(words.shape[0] * pack, words.shape[1], dtype=torch.int64)
    order = SHUFFLED[4] if kernel.bits == 4 else range(4)
    for place, element in enumerate(order):
        codes[element::pack] = words >> (kernel.bits * place) & ((1 << kernel.bits) - 1)
    values = float_values(kernel.bits)[codes]
    if kernel.kernel_type == "nvfp4":
        known = torch.tensor([scale_byte(byte) for byte in range(256)], dtype=torch.float64)
        scales = known[layer.weight_scale.long()].transpose(1, 2).flatten(0, 1)
        return values * scales.repeat_interleave(16, 0) * layer.weight_global_scale.double()
    if kernel.kernel_type == "fp8_block":
        assert layer.weight_scale_inv.dtype == kernel.config.input_dtype
        scales = layer.weight_scale_inv.double().repeat_interleave(kernel.group_size, 0)
        return values * scales[: len(values)] * layer.weight_factor.double()
    if kernel.bits == 8 and hasattr(layer, "weight_ones"):
        assert (layer.weight_ones == 1).all()
        assert layer.weight_scale.dtype == torch.float32
        return values * layer.weight_scale.double()
    return values * layer.weight_scale.double().repeat_interleave(32, 0)


def canonical(config: Any, tensors: dict[str, Tensor]) -> Tensor:
    """The same from the layer's own tensors."""
    scale = tensors.get("weight_scale", torch.empty(0))
    if config.kernel_type == "fp8":
        return tensors["weight"].double() * scale.double().reshape(1, -1)
    codes = tensors["weight"].view(torch.uint8).long()
    if config.kernel_type == "fp8_block":
        scale = tensors["weight_scale_inv"].double()
        for dim, size in enumerate(config.weight_block):
            scale = scale.repeat_interleave(size, dim)
        N, K = codes.shape
        return (float_values(8)[codes] * scale[:N, :K]).t()
    if config.kernel_type in ("mxfp4", "nvfp4"):
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    if config.kernel_type == "nvfp4":
        scales = scale.double().repeat_interleave(16, 1) * tensors["weight_global_scale"].double()
        return (float_values(4)[codes] * scales).t()
    scales = 2.0 ** (scale.view(torch.uint8).double() - 127)
    values = float_values(4 if config.kernel_type == "mxfp4" else 8)[codes]
    return (values * scales.repeat_interleave(32, 1)).t()


@pytest.mark.parametrize("config", LAYERS, ids=lambda c: c.describe())
def test_packing(config: Any) -> None:
    tensors = random_tensors(config)
    kernel, layer = packed(config, tensors)
    whole, (N, K) = unpacked(kernel, layer), config.weight_shape
    assert whole.shape == (-(-K // 32) * 32, -(-N // 32) * 32)
    exact = canonical(config, tensors)
    if config.kernel_type == "fp8_block" and config.weight_block[1] < K:  # scales of 8 bits
        assert ((whole[:K, :N] - exact).abs() <= exact.abs() * 2.0**-8).all()
    else:
        assert torch.equal(whole[:K, :N], exact)
    assert not whole[K:].any()
    assert not whole[:, N:].any()


def test_every_scale_of_e8m0() -> None:
    scales = torch.arange(256, dtype=torch.uint8).reshape(1, -1)
    made = decode_e8m0(scales, torch.bfloat16)
    assert torch.equal(made.double()[0, :255], 2.0 ** (torch.arange(255).double() - 127))
    assert made[0, 255].isnan()


def test_every_scale_of_nvfp4() -> None:
    """Signs and zeros of scales become those of codes; a NaN is its output's."""
    config = NvFp4LinearLayerConfig((256, 32), None, BFLOAT)
    tensors = random_tensors(config)
    scale = torch.arange(256, dtype=torch.uint8).reshape(-1, 1).repeat(1, 2)
    scale[:, 1] = 0x38
    tensors["weight_scale"] = scale.view(torch.float8_e4m3fn)
    kernel, layer = packed(config, tensors)
    whole, exact = unpacked(kernel, layer), canonical(config, tensors)
    nan = exact.isnan().any(0)
    assert nan.nonzero().flatten().tolist() == [0x7F, 0xFF]
    assert whole[:, nan].isnan().all()
    assert torch.equal(whole[:, ~nan], exact[:, ~nan])


def test_scales_of_blocks() -> None:
    """Zeros, infinities and NaNs among them stay in their rows; small ones are kept in float16."""
    config = blocks(32, 128, (96, 256), input_dtype=torch.float16, out_dtype=torch.float16)
    tensors = random_tensors(config)
    tensors["weight_scale_inv"] = torch.tensor([[1e-9, 3e-10], [0.0, 0.0], [float("nan"), 1.0]])
    kernel, layer = packed(config, tensors)
    whole, exact = unpacked(kernel, layer), canonical(config, tensors)
    assert ((whole - exact).abs() <= exact.abs() * 2.0**-11)[:, :64].all()
    assert (whole[:, 32:64] == 0).all()
    assert whole[:128, 64:].isnan().all()


def test_a_nan_becomes_its_scale() -> None:
    config = fp8()
    tensors = random_tensors(config)
    tensors["weight"].view(torch.uint8)[5, 3] = 0xFF
    _, layer = packed(config, tensors)
    scale: Any = layer.weight_scale
    assert scale.isnan().nonzero().flatten().tolist() == [3]
    config_of_blocks = blocks(128, 128)
    tensors = random_tensors(config_of_blocks)
    tensors["weight"].view(torch.uint8)[3, 5] = 0xFF
    _, layer = packed(config_of_blocks, tensors)
    factor: Any = layer.weight_factor
    assert factor.isnan().nonzero().flatten().tolist() == [3]
    tensors = random_tensors(MXFP8)
    tensors["weight"].view(torch.uint8)[7, 40] = 0x7F
    tensors["weight_scale"][9, 0] = 255
    _, layer = packed(MXFP8, tensors)
    scale = layer.weight_scale
    assert scale.isnan().nonzero().tolist() == [[0, 9], [1, 7]]


def test_refusals() -> None:
    def refused(name: str, config: Any, word: str) -> None:
        can, why = CLASSES[name].can_implement(config)
        assert not can
        assert why is not None
        assert word in why

    refused("fp8", fp8(activation_quant_key=kFp8DynamicTokenSym), "activations")
    refused("fp8", fp8(input_dtype=torch.float32), "float32")
    refused("mxfp4", MxFp4LinearLayerConfig((40, 96), None, torch.float16), "float16")
    refused("mxfp8", Mxfp8LinearLayerConfig((40, 96), input_dtype=BFLOAT), "as they are")
    refused("mxfp4", MxFp4LinearLayerConfig(None, None, BFLOAT), "shape")
    refused("nvfp4", NvFp4LinearLayerConfig((40, 80), input_dtype=BFLOAT), "as they are")
    refused("nvfp4", NvFp4LinearLayerConfig(None, None, BFLOAT), "shape")
    refused("nvfp4", NvFp4LinearLayerConfig((40, 80), None, torch.float32), "float32")
    refused("fp8_block", blocks(128, 48), "blocks of 48")
    refused("fp8_block", blocks(128, 128, activation_quant_key=kFp8Dynamic128Sym), "activations")
    refused("fp8_block", blocks(128, 128, input_dtype=torch.float32), "float32")
    assert CLASSES["fp8"].can_implement(fp8(input_dtype=torch.float16))[0]
    assert CLASSES["fp8_block"].can_implement(blocks(7, 160, input_dtype=torch.float16))[0]


@pytest.mark.parametrize("dtype", [torch.float16, BFLOAT, torch.float32, None])
@pytest.mark.parametrize("shape", [(40, 80), None])
def test_nvfp4_takes_what_marlin_takes(
    shape: tuple[int, int] | None, dtype: torch.dtype | None
) -> None:
    for config in (
        NvFp4LinearLayerConfig(shape, None, dtype),
        NvFp4LinearLayerConfig(shape, None, None, dtype),
        NvFp4LinearLayerConfig(shape, input_dtype=dtype),
    ):
        theirs = marlin_floats.MarlinNvFp4LinearKernel.can_implement(config)[0]
        assert CLASSES["nvfp4"].can_implement(config)[0] == theirs


def test_order_of_kernels() -> None:
    """What no GPU has run comes behind what did, and weight-only behind quantized activations."""
    specs = {spec.name: spec for spec in plugin.qcore_kernels()}
    of_blocks = specs["HopperFp8BlockScaledMMKernel"]
    assert of_blocks.priority < specs["CutlassFp8BlockScaledMMKernel"].priority
    nvfp4, marlin = specs["HopperNvFp4LinearKernel"], specs["MarlinNvFp4LinearKernel"]
    assert nvfp4.evidence is Evidence.EXECUTED or nvfp4.priority < marlin.priority


@pytest.mark.parametrize("config", LAYERS, ids=lambda c: c.describe())
def test_meta(config: Any) -> None:
    """Layers can be packed and run where there are shapes alone."""
    tensors = {name: t.to("meta") for name, t in random_tensors(config).items()}
    kernel = CLASSES[config.kernel_type].from_config(config)
    layer = make_layer(config, tensors, device="meta")
    process_weights(kernel, layer)
    out = kernel.apply_weights(
        layer, torch.empty(2, 3, config.in_features, device="meta").to(BFLOAT)
    )
    assert out.shape == (2, 3, config.out_features)
    assert out.dtype == BFLOAT
