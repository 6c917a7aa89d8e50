"""The exact value of every quantized weight, from the canonical layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig, FP8ScaledMMLinearLayerConfig
from qcore.layers.gguf import GGUFLinearLayerConfig
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.moe import ExpertsLayerConfig
from qcore.numerics.gguf_blocks import dequantize_blocks
from qcore.numerics.packing import unpack_int32, unpack_uint4
from qcore.numerics.small_floats import decode_e2m1, decode_e8m0

__all__ = ["dequantize_expert", "dequantize_weight", "group_of_inputs", "unpack_mp"]

Tensors = Mapping[str, "torch.Tensor | None"]


def dequantize_weight(
    config: MMLinearLayerConfig, tensors: Tensors, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The layer's weight [N, K].

    Args:
        config: the layer's config; its class says the layout.
        tensors: the canonical tensors (see the config's module).
        dtype: to compute in and return: float32 or float64.

    Raises:
        TypeError: no dequantizer is known for the config's class.
    """
    if isinstance(config, MPLinearLayerConfig):
        return _mp(config, tensors, dtype)
    if isinstance(config, CodebookLinearLayerConfig):
        return _codebook(config, tensors, dtype)
    if isinstance(config, Int8ScaledMMLinearLayerConfig):
        return _int8(tensors, dtype)
    if isinstance(config, Fp8BlockScaledMMLinearLayerConfig):
        return _fp8_block(config, tensors, dtype)
    if isinstance(config, FP8ScaledMMLinearLayerConfig):
        weight, scale = _get(tensors, "weight"), _get(tensors, "weight_scale")
        return weight.t().to(dtype) * scale.to(dtype).reshape(-1, 1)
    if isinstance(config, NvFp4LinearLayerConfig):
        scale = _get(tensors, "weight_scale").to(dtype)
        scale = scale * _get(tensors, "weight_global_scale").to(dtype).reshape(())
        return decode_e2m1(unpack_uint4(_get(tensors, "weight")), dtype) * _spread(scale, 16)
    if isinstance(config, MxFp4LinearLayerConfig):
        scale = decode_e8m0(_get(tensors, "weight_scale"), dtype)
        return decode_e2m1(unpack_uint4(_get(tensors, "weight")), dtype) * _spread(scale, 32)
    if isinstance(config, Mxfp8LinearLayerConfig):
        scale = decode_e8m0(_get(tensors, "weight_scale"), dtype)
        return _get(tensors, "weight").to(dtype) * _spread(scale, 32)
    if isinstance(config, GGUFLinearLayerConfig):
        return dequantize_blocks(_get(tensors, "weight"), config.qtype, dtype)
    raise TypeError(f"no dequantizer for {type(config).__name__}")


def dequantize_expert(
    config: ExpertsLayerConfig,
    tensors: Tensors,
    projection: str,
    expert: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """One matrix [N, K] of one expert.

    Args:
        config: the experts.
        tensors: their canonical tensors.
        projection: ``w13`` or ``w2``.
        expert: its number.
        dtype: to compute in and return: float32 or float64.
    """
    linear = config.projection(projection)
    found = {name: tensors.get(config.stacked_name(projection, name)) for name in linear.params()}
    mine = {name: None if stack is None else stack[expert] for name, stack in found.items()}
    return dequantize_weight(linear, mine, dtype)


def _get(tensors: Tensors, name: str) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise KeyError(name)
    return tensor


def _spread(scale: torch.Tensor, block: int) -> torch.Tensor:
    """[N, G] to [N, G * block]."""
    return scale.repeat_interleave(block, dim=1)


def group_of_inputs(config: MPLinearLayerConfig, g_idx: torch.Tensor | None) -> torch.Tensor | None:
    """The group of each input, int64 [K]; None where one group covers all."""
    if g_idx is not None:
        return g_idx.long()
    if config.group_size == -1:
        return None
    return torch.arange(config.in_features) // config.group_size


def unpack_mp(
    config: MPLinearLayerConfig, tensors: Tensors
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Codes [N, K] (uint8, or int8 for signed types) and zero points: uint8 [N, G], or the bias."""
    weight = _get(tensors, "weight_packed")
    bits = config.weight_type.size_bits
    if config.weight_type.signed:
        return weight, 0
    codes = unpack_int32(weight, bits, config.in_features, dim=1)
    zero_point = tensors.get("weight_zero_point")
    if not config.zero_points or zero_point is None:
        return codes, config.weight_type.bias
    return codes, unpack_int32(zero_point, bits, config.out_features, dim=0)


def _mp(config: MPLinearLayerConfig, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    codes, zero = unpack_mp(config, tensors)
    scale = _get(tensors, "weight_scale").to(dtype)
    groups = group_of_inputs(config, tensors.get("weight_g_idx") if config.has_g_idx else None)
    if groups is None:
        offset = zero.to(dtype) if isinstance(zero, torch.Tensor) else zero
        return (codes.to(dtype) - offset) * scale
    groups = groups.to(codes.device)
    offset = zero.to(dtype)[:, groups] if isinstance(zero, torch.Tensor) else zero
    return (codes.to(dtype) - offset) * scale[:, groups]


def _codebook(
    config: CodebookLinearLayerConfig, tensors: Tensors, dtype: torch.dtype
) -> torch.Tensor:
    K = config.in_features
    codes = unpack_int32(_get(tensors, "weight_packed"), config.bits, K, dim=1)
    values = _get(tensors, "weight_codebook").to(dtype)[codes.int()]
    size = K if config.group_size == -1 else config.group_size
    weight = values * _spread(_get(tensors, "weight_scale").to(dtype), size)[:, :K]
    if config.has_offset:
        weight = weight + _spread(_get(tensors, "weight_offset").to(dtype), size)[:, :K]
    return weight


def _int8(tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    weight, scale = _get(tensors, "weight"), _get(tensors, "weight_scale")
    return weight.to(dtype) * scale.to(dtype).reshape(-1, 1)


def _fp8_block(
    config: Fp8BlockScaledMMLinearLayerConfig, tensors: Tensors, dtype: torch.dtype
) -> torch.Tensor:
    weight = _get(tensors, "weight").to(dtype)
    scale = _get(tensors, "weight_scale_inv").to(dtype)
    bn, bk = config.weight_block
    N, K = weight.shape
    rows = torch.arange(N, device=weight.device) // bn
    columns = torch.arange(K, device=weight.device) // bk
    return weight * scale[rows[:, None], columns[None, :]]
