"""Between which values an activation lies once a kernel has rounded it, however it computes that.

Quantization is ``code = Q(x / scale)`` with a ``Q`` that never decreases. Kernels compute the
quotient in float32, but not all alike: ``x / scale``, ``x * (1 / scale)``, ``x * (127 / amax)``,
with exact or approximate reciprocals. All lie within a few units in the last place of the real
quotient ``t``, so the code lies between ``Q(t * (1 - d))`` and ``Q(t * (1 + d))``. Away from a tie
the two are the same code, and the kernel must find it; at a tie they are neighbours, and the kernel
may find either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcore.facts.quant_key import QuantKey
from qcore.facts.scalar_type import scalar_types
from qcore.layers import Int8ScaledMMLinearLayerConfig, MMLinearLayerConfig, MPLinearLayerConfig
from qcore.numerics.activation_quant import fp8_max, mxfp4_round, mxfp8_quant
from qcore.numerics.small_floats import E2M1_MAX, decode_e2m1, decode_e8m0, encode_e2m1

__all__ = ["Interval", "activation_interval", "int8_zero_point_magnitude"]

Interval = tuple[torch.Tensor, torch.Tensor]
"""The least and the greatest value, float64 [M, K] each."""

Tensors = Mapping[str, "torch.Tensor | None"]

QUOTIENT_SLACK = 2.0**-20
"""``d``: 16 roundings to float32. A scale takes three at most, a reciprocal two (hardware
approximations err by up to two units), a second scale the same, the product one."""

_FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
_INT8_TOKENS = Int8ScaledMMLinearLayerConfig(False, True, True)


def activation_interval(
    config: MMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor
) -> Interval:
    """Between which values the rounded ``rows`` lie, in float64.

    Args:
        config: says how activations are quantized; not at all gives ``rows`` twice.
        tensors: the canonical tensors.
        rows: float [M, K].
    """
    wide = rows.to(torch.float64)
    if isinstance(config, Int8ScaledMMLinearLayerConfig):
        return _int8(config, tensors, wide)
    if isinstance(config, MPLinearLayerConfig):
        if config.act_type == torch.int8:
            return _int8(_INT8_TOKENS, tensors, wide)
        if config.act_type not in _FP8:
            return wide, wide
        return _fp8(wide, _amax(wide, -1) / fp8_max(config.act_type), config.act_type)
    key: QuantKey | None = getattr(config, "activation_quant_key", None)
    if key is None:
        return wide, wide
    if key.dtype == scalar_types.float4_e2m1f:
        return _nvfp4(wide, key, tensors) if key.scale2 is not None else _same(mxfp4_round(rows))
    assert isinstance(key.dtype, torch.dtype)
    if key.scale.dtype == torch.uint8:
        # A power of two as scale: quotients are exact, and so is every kernel's.
        codes, exponents = mxfp8_quant(rows)
        scale = decode_e8m0(exponents, torch.float64).repeat_interleave(32, dim=1)
        return _same(codes.to(torch.float64) * scale)
    if key.scale.static:
        return _fp8(wide, _one(tensors, "input_scale"), key.dtype)
    if key.scale.group_shape.is_per_group():
        size, K = key.scale.group_shape.col, rows.shape[1]
        blocks = torch.nn.functional.pad(wide, (0, -K % size)).reshape(len(rows), -1, size)
        low, high = _fp8(blocks, _amax(blocks, -1) / fp8_max(key.dtype), key.dtype)
        return low.flatten(1)[:, :K], high.flatten(1)[:, :K]
    whole = not key.scale.group_shape.is_per_token()
    amax = _amax(wide.reshape(1, -1) if whole else wide, -1)
    return _fp8(wide, amax / fp8_max(key.dtype), key.dtype)


def _same(values: torch.Tensor) -> Interval:
    wide = values.to(torch.float64)
    return wide, wide


def _amax(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.abs().amax(dim, keepdim=True) if values.numel() else values.new_ones(1)


def _one(tensors: Tensors, name: str) -> torch.Tensor:
    tensor = tensors[name]
    assert tensor is not None
    return tensor.to(torch.float64).reshape(1, 1)


def _around(
    values: torch.Tensor, scale: torch.Tensor, round_: Callable[[torch.Tensor], torch.Tensor]
) -> Interval:
    """``round_(values / scale)`` between its limits, not yet multiplied by the scale."""
    quotient = values / torch.where(scale == 0, torch.ones_like(scale), scale)
    slack = quotient.abs() * QUOTIENT_SLACK
    return round_(quotient - slack), round_(quotient + slack)


def _fp8(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Interval:
    limit = fp8_max(dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)

    def round_(quotient: torch.Tensor) -> torch.Tensor:
        return quotient.clamp(-limit, limit).to(dtype).to(torch.float64)

    low, high = _around(values, scale, round_)
    return low * scale, high * scale


def _nvfp4(rows: torch.Tensor, key: QuantKey, tensors: Tensors) -> Interval:
    """A tie may occur twice: where the block's scale is rounded to e4m3, and in the codes."""
    assert key.scale2 is not None
    if key.scale2.static and tensors.get("input_global_scale") is not None:
        outer = _one(tensors, "input_global_scale")
    else:
        per_token = key.scale2.group_shape.is_per_token()
        outer = _amax(rows if per_token else rows.reshape(1, -1), -1) / (448.0 * 6.0)
        outer = torch.where(outer == 0, torch.ones_like(outer), outer)
    blocks = rows.reshape(len(rows), -1, 16)
    outer = outer.reshape(-1, 1, 1)
    block_scales = _around(
        _amax(blocks, -1) / E2M1_MAX,
        outer,
        lambda t: t.clamp(max=448.0).to(torch.float8_e4m3fn).to(torch.float64),
    )
    limits = []
    for block_scale in block_scales:
        scale = block_scale * outer
        for codes in _around(blocks, scale, _round_e2m1):
            limits.append(torch.where(scale > 0, codes * scale, torch.zeros_like(codes)))
    stacked = torch.stack(limits).flatten(2)
    return stacked.amin(0), stacked.amax(0)


def _round_e2m1(values: torch.Tensor) -> torch.Tensor:
    return decode_e2m1(encode_e2m1(values), torch.float64)


# -- int8 --------------------------------------------------------------------------------------


def _int8_scale_and_low(
    config: Int8ScaledMMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale, [M, 1] or [1, 1], and the least value of each row (0 where all are above)."""
    if config.is_static_input_scheme:
        return _one(tensors, "input_scale"), rows.new_zeros(1, 1)
    if not rows.numel():
        return rows.new_ones(1, 1), rows.new_zeros(1, 1)
    low = rows.amin(-1, keepdim=True).clamp(max=0.0)
    if config.input_symmetric:
        scale = _amax(rows, -1) / 127.0
    else:
        scale = (rows.amax(-1, keepdim=True).clamp(min=0.0) - low) / 255.0
    return torch.where(scale == 0, torch.ones_like(scale), scale), low


def int8_zero_point_magnitude(
    config: Int8ScaledMMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor
) -> torch.Tensor:
    """The largest ``|zero point| * scale`` of each row, float64 [M, 1] or [1, 1]."""
    scale, _ = _int8_scale_and_low(config, tensors, rows)
    least, most = _int8_zero_points(config, tensors, rows)
    return torch.maximum(least.abs(), most.abs()) * scale


def _int8_zero_points(
    config: Int8ScaledMMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor
) -> Interval:
    """The least and the greatest zero point that a kernel may use, float64 [M, 1] or [1, 1]."""
    if config.input_symmetric:
        return rows.new_zeros(1, 1), rows.new_zeros(1, 1)
    if config.is_static_input_scheme:
        zero = _one(tensors, "input_zero_point")
        return zero, zero
    scale, low = _int8_scale_and_low(config, tensors, rows)
    least, most = _around(low, scale, torch.round)
    return (-128 - most).clamp(-128, 127), (-128 - least).clamp(-128, 127)


def _int8(config: Int8ScaledMMLinearLayerConfig, tensors: Tensors, rows: torch.Tensor) -> Interval:
    """``(clamp(round(x / s) + z) - z) * s``, over both zero points where they may differ."""
    scale, _ = _int8_scale_and_low(config, tensors, rows)
    least, most = _around(rows, scale, torch.round)
    floor = -127.0 if config.input_symmetric else -128.0
    values = [
        (codes + zero).clamp(floor, 127.0) - zero
        for zero in _int8_zero_points(config, tensors, rows)
        for codes in (least, most)
    ]
    stacked = torch.stack(values)
    return stacked.amin(0) * scale, stacked.amax(0) * scale
