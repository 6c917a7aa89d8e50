"""`reference_linear`: what a quantized linear layer computes, said once, for every config.

It is slow and plain on purpose: the weight is dequantized at each call, the product is one matrix
product in float32 or float64. The reference kernels run it; all others are tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qcore.errors import ConfigError
from qcore.facts.quant_key import QuantKey
from qcore.facts.scalar_type import scalar_types
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.layers.gguf import GGUFLinearLayerConfig
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.activation_quant import (
    dynamic_int8_quant,
    group_fp8_quant,
    mxfp4_round,
    mxfp8_quant,
    nvfp4_round,
    scaled_fp8_quant,
    static_int8_quant,
)
from qcore.numerics.dequantize import dequantize_weight
from qcore.numerics.small_floats import decode_e8m0

__all__ = ["reference_linear", "round_activations", "unknown_activation_key"]

Tensors = Mapping[str, "torch.Tensor | None"]
_E4M3 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def reference_linear(
    config: MMLinearLayerConfig,
    tensors: Tensors,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The layer's output.

    Args:
        config: the layer.
        tensors: its canonical tensors.
        x: [..., K].
        bias: [N].
        compute_dtype: of the product: float32, or float64 for an oracle. Integer products (int8)
            are always exact.
        out_dtype: of the result; None for what the config says, or else the input's.

    Returns:
        [..., N].

    Raises:
        ConfigError: the config's way to quantize activations is not known.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(config, Int8ScaledMMLinearLayerConfig):
        out = _int8(config, tensors, rows).to(compute_dtype)
    else:
        weight = dequantize_weight(config, tensors, compute_dtype)
        out = round_activations(config, tensors, rows).to(compute_dtype) @ weight.t()
    if bias is not None:
        out = out + bias.to(compute_dtype)
    if out_dtype is None:
        out_dtype = getattr(config, "out_dtype", None) or getattr(config, "out_type", None)
    return out.to(out_dtype or x.dtype).reshape(*x.shape[:-1], out.shape[-1])


def _int8(
    config: Int8ScaledMMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor
) -> torch.Tensor:
    if config.is_static_input_scheme:
        scale, azp = tensors["input_scale"], tensors.get("input_zero_point")
        assert scale is not None
        codes = static_int8_quant(rows, scale, None if config.input_symmetric else azp)
        input_scale = scale.reshape(1, 1)
        azp = None if config.input_symmetric or azp is None else azp.reshape(1, 1)
    else:
        codes, input_scale, azp = dynamic_int8_quant(rows, config.input_symmetric)
    # In float64 sums of products of bytes are exact for any K below 2**38.
    centred = codes.double() if azp is None else codes.double() - azp.double()
    weight, weight_scale = tensors["weight"], tensors["weight_scale"]
    assert weight is not None
    assert weight_scale is not None
    product = centred @ weight.double().t()
    return product * input_scale.double() * weight_scale.double().reshape(1, -1)


# -- activations that are rounded, then multiplied as floats -----------------------------------


def unknown_activation_key(key: QuantKey | None) -> str | None:
    """Why activations cannot be rounded as ``key`` says; None where they can."""
    if key is None:
        return None
    if key.dtype in _E4M3:
        return None
    if key.dtype == scalar_types.float4_e2m1f:
        return None
    return f"activations as {key} are not known; e4m3 and e2m1 are"


def round_activations(
    config: MMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor
) -> torch.Tensor:
    """``rows`` [M, K] as the config's activation quantization rounds them, in float32 or wider."""
    if isinstance(config, MPLinearLayerConfig):
        if config.act_type == torch.int8:
            codes, scale, _ = dynamic_int8_quant(rows)
            return codes.to(torch.float32) * scale
        if config.act_type not in _E4M3:
            return rows
        codes, scale = scaled_fp8_quant(rows, per_token=True, dtype=config.act_type)
        return codes.to(torch.float32) * scale
    if isinstance(config, CodebookLinearLayerConfig):
        return rows
    if isinstance(config, FP8ScaledMMLinearLayerConfig):
        return _round(rows, config.activation_quant_key, tensors)
    if isinstance(config, (NvFp4LinearLayerConfig, MxFp4LinearLayerConfig, Mxfp8LinearLayerConfig)):
        return _round(rows, config.activation_quant_key, tensors)
    if isinstance(config, GGUFLinearLayerConfig):
        return rows
    raise ConfigError(f"no reference for {type(config).__name__}")


def _round(rows: torch.Tensor, key: QuantKey | None, tensors: Tensors) -> torch.Tensor:
    if key is None:
        return rows
    if (why := unknown_activation_key(key)) is not None:
        raise ConfigError(why)
    if key.dtype == scalar_types.float4_e2m1f:
        return _round_fp4(rows, key, tensors)
    assert isinstance(key.dtype, torch.dtype)
    if key.scale.dtype == torch.uint8:
        codes, exponents = mxfp8_quant(rows)
        return codes.to(torch.float32) * decode_e8m0(exponents).repeat_interleave(32, dim=1)
    if rows.dtype == key.dtype:
        codes, scale = rows, tensors["input_scale"]
        assert scale is not None
    elif key.scale.group_shape.is_per_group():
        size = key.scale.group_shape.col
        codes, scales = group_fp8_quant(rows, size, key.dtype)
        return codes.to(torch.float32) * scales.repeat_interleave(size, dim=1)[:, : rows.shape[1]]
    else:
        codes, scale = scaled_fp8_quant(
            rows,
            tensors.get("input_scale") if key.scale.static else None,
            per_token=key.scale.group_shape.is_per_token(),
            upper_bound=tensors.get("input_scale_ub"),
            dtype=key.dtype,
        )
    return codes.to(torch.float32) * scale.reshape(-1, 1)


def _round_fp4(rows: torch.Tensor, key: QuantKey, tensors: Tensors) -> torch.Tensor:
    if key.scale2 is None:
        return mxfp4_round(rows)
    outer = tensors.get("input_global_scale") if key.scale2.static else None
    if outer is None:
        per_token = key.scale2.group_shape.is_per_token()
        wide = rows.to(torch.float32).abs()
        if rows.numel() == 0:
            return rows.to(torch.float32)
        amax = wide.amax(-1, keepdim=True) if per_token else wide.max().reshape(1)
        outer = amax / (448.0 * 6.0)
        outer = torch.where(outer == 0, torch.ones_like(outer), outer)
    return nvfp4_round(rows, outer)
