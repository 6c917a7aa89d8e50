"""Layers of FP8, MXFP4 and MXFP8 weights, without a GPU: packing, refusals, fakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qcore.facts.quant_key import kFp8DynamicTokenSym, kFp8StaticChannelSym, kFp8StaticTensorSym
from qcore.kernels import process_weights
from qcore.layers import (
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
)
from qcore.numerics.small_floats import decode_e8m0
from qcore.testing import make_layer, random_tensors
from qcore_cuda.kernels import small_floats
from qcore_cuda.kernels.gptq_packing import SHUFFLED
from small_float_oracle import float_values

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


MXFP4 = MxFp4LinearLayerConfig((40, 96), None, BFLOAT)
MXFP8 = Mxfp8LinearLayerConfig((40, 96), None, BFLOAT)
CLASSES = {
    "fp8": small_floats.HopperFP8ScaledMMLinearKernel,
    "mxfp4": small_floats.HopperMxFp4LinearKernel,
    "mxfp8": small_floats.HopperMxfp8LinearKernel,
}
LAYERS: list[Any] = [fp8(), fp8(kFp8StaticTensorSym), MXFP4, MXFP8]


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
    if kernel.bits == 8 and hasattr(layer, "weight_ones"):
        assert (layer.weight_ones == 1).all()
        assert layer.weight_scale.dtype == torch.float32
        return values * layer.weight_scale.double()
    return values * layer.weight_scale.double().repeat_interleave(32, 0)


def canonical(config: Any, tensors: dict[str, Tensor]) -> Tensor:
    """The same from the layer's own tensors."""
    scale = tensors["weight_scale"]
    if config.kernel_type == "fp8":
        return tensors["weight"].double() * scale.double().reshape(1, -1)
    codes = tensors["weight"].view(torch.uint8).long()
    if config.kernel_type == "mxfp4":
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    scales = 2.0 ** (scale.view(torch.uint8).double() - 127)
    values = float_values(4 if config.kernel_type == "mxfp4" else 8)[codes]
    return (values * scales.repeat_interleave(32, 1)).t()


@pytest.mark.parametrize("config", LAYERS, ids=lambda c: c.describe())
def test_packing(config: Any) -> None:
    tensors = random_tensors(config)
    kernel, layer = packed(config, tensors)
    whole, (N, K) = unpacked(kernel, layer), config.weight_shape
    assert whole.shape == (-(-K // 32) * 32, 64)
    assert torch.equal(whole[:K, :N], canonical(config, tensors))
    assert not whole[K:].any()
    assert not whole[:, N:].any()


def test_every_scale_of_e8m0() -> None:
    scales = torch.arange(256, dtype=torch.uint8).reshape(1, -1)
    made = decode_e8m0(scales, torch.bfloat16)
    assert torch.equal(made.double()[0, :255], 2.0 ** (torch.arange(255).double() - 127))
    assert made[0, 255].isnan()


def test_a_nan_becomes_its_scale() -> None:
    config = fp8()
    tensors = random_tensors(config)
    tensors["weight"].view(torch.uint8)[5, 3] = 0xFF
    _, layer = packed(config, tensors)
    scale: Any = layer.weight_scale
    assert scale.isnan().nonzero().flatten().tolist() == [3]
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
    assert CLASSES["fp8"].can_implement(fp8(input_dtype=torch.float16))[0]


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
