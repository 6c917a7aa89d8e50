"""Layers with 8-bit operands: quantize, multiply, scale, add the bias."""

from __future__ import annotations

import torch
from qcore.kernels.op_library import as_rows, empty_out

from qcore_rocm.launching import (
    FLOAT_TYPES,
    BlockScaledMM,
    QuantizeGroups,
    QuantizeRows,
    ScaledMM,
    address,
    launch,
)
from qcore_rocm.ops.support import (
    FLOAT_NAMES,
    FLOATS,
    OPS,
    TILE_COLUMNS,
    Tensor,
    blocks,
    check,
    check_rows,
    refusal,
)

__all__ = [
    "FP8_BLOCK_LINEAR",
    "FP8_LINEAR",
    "INT8_LINEAR",
    "fp8_block_linear",
    "fp8_linear",
    "fp8_mm",
    "int8_linear",
]

_WAVES = 4
_GROUP = 128  # activations that share a scale, with block scales
_MOST_ROWS = 32768  # of csrc/quantize_rows.h


def _quantize(
    kind: str,
    rows: Tensor,
    K_padded: int,
    scale: Tensor | None,
    zero: Tensor | None,
    bound: Tensor | None,
    symmetric: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes uint8 [M, K_padded], the scale and the zero point: as given, or [M]."""
    M, K = rows.shape
    codes = rows.new_empty((M, K_padded), dtype=torch.uint8)
    static = scale is not None
    if scale is None:
        scale = rows.new_empty((M,), dtype=torch.float32)
        zero = None if symmetric else rows.new_empty((M,), dtype=torch.int32)
    args = QuantizeRows(
        address(rows),
        address(codes),
        address(scale),
        address(zero),
        address(bound),
        rows.stride(0),
        K,
        K_padded,
        static,
    )
    launch(f"quantize_{kind}_{FLOAT_NAMES[rows.dtype]}", args, (M, 1), rows.device)
    return codes, scale, zero


def _multiply(
    kind: str,
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    zero: Tensor | None,
    weight_sum: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    (M, K), N = codes.shape, weight.shape[0]
    args = ScaledMM(
        address(codes),
        address(weight),
        address(scale),
        address(weight_scale),
        address(zero),
        address(weight_sum),
        address(bias),
        address(out),
        M,
        N,
        K,
        int(scale.numel() > 1),
        int(weight_scale.numel() > 1),
        int(zero is not None and zero.numel() > 1),
        FLOAT_TYPES[bias.dtype] if bias is not None else 0,
        FLOAT_TYPES[out.dtype],
    )
    tile = 16 if M <= 16 else 64
    grid = (blocks(N, TILE_COLUMNS), blocks(M, tile))
    launch(f"scaled_mm_{kind}_{tile}", args, grid, codes.device)


def _check_weight(
    op: str, x: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype, out_dtype: torch.dtype
) -> int:
    """The number of outputs."""
    if weight.dim() != 2 or weight.shape[1] % 16 != 0:
        raise refusal(op, "weight", list(weight.shape), "[N, K'] with K' a multiple of 16")
    N, K = weight.shape
    check(op, "weight", weight, (dtype,), ((N, K),), x)
    check(op, "weight_scale", scale, (torch.float32,), ((N,), (1,)), x)
    check_rows(op, x, K - 15, K, out_dtype)
    return N


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_azp: Tensor | None,
    azp_adj: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """Int8 weights and activations; sums are exact.

    Args:
        x: float [..., K].
        weight: int8 [N, K'], K' the next multiple of 16, zeros behind K.
        weight_scale: float32 [N] or [1].
        bias: float [N].
        input_scale: float32 [1]; None to compute one for each row.
        input_azp: int32 [1], the static zero point.
        azp_adj: int32 [N], the sum of each row of weights; None for activations without zero point.
        out_dtype: of the result.
    """
    op, one = "int8_linear", ((1,),)
    N = _check_weight(op, x, weight, weight_scale, torch.int8, out_dtype)
    check(op, "bias", bias, FLOATS, ((N,),), x)
    check(op, "input_scale", input_scale, (torch.float32,), one, x)
    check(op, "input_azp", input_azp, (torch.int32,), one, x)
    check(op, "azp_adj", azp_adj, (torch.int32,), ((N,),), x)
    if (input_azp is not None) != (input_scale is not None and azp_adj is not None):
        given = "given" if input_azp is not None else "None"
        raise refusal(op, "input_azp", given, "given with input_scale and azp_adj, and not else")
    out = empty_out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = as_rows(x)
    symmetric = azp_adj is None
    made = _quantize("int8", rows, weight.shape[1], input_scale, input_azp, None, symmetric)
    codes, scale, zero = made
    _multiply("int8", codes, weight, scale, weight_scale, zero, azp_adj, bias, out)
    return out


def _int8_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_azp: Tensor | None,
    azp_adj: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    return empty_out(x, weight.shape[0], out_dtype)


OPS.define(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
    "Tensor? input_azp, Tensor? azp_adj, ScalarType out_dtype) -> Tensor",
    int8_linear,
    _int8_fake,
)
INT8_LINEAR = torch.ops.qcore_rocm.int8_linear.default


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    upper_bound: Tensor | None,
    per_token: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """E4m3 weights and activations, sums in float32.

    Activations are rounded to e4m3fn. gfx942 multiplies e4m3fnuz, whose values are half as large:
    ``weight_scale`` has a factor of two for the activations there, and another for a weight that
    was e4m3fn (`qcore.numerics.fnuz`).

    Args:
        x: float [..., K].
        weight: the bytes of e4m3 as the GPU has it, uint8 [N, K'], K' the next multiple of 16.
        weight_scale: float32 [N] or [1].
        bias: float [N].
        input_scale: float32 [1], of e4m3fn; None to compute it.
        upper_bound: float32 [1], the largest magnitude that a computed scale covers.
        per_token: a scale for each row, where they are computed.
        out_dtype: of the result.
    """
    op, one = "fp8_linear", ((1,),)
    N = _check_weight(op, x, weight, weight_scale, torch.uint8, out_dtype)
    check(op, "bias", bias, FLOATS, ((N,),), x)
    check(op, "input_scale", input_scale, (torch.float32,), one, x)
    check(op, "upper_bound", upper_bound, (torch.float32,), one, x)
    out = empty_out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = as_rows(x)
    if input_scale is None and not per_token:
        largest = rows.abs().amax().to(torch.float32).reshape(1)
        if upper_bound is not None:
            largest = torch.minimum(largest, upper_bound)
        input_scale = largest / 448.0
        input_scale = torch.where(input_scale == 0, torch.ones_like(input_scale), input_scale)
    codes, scale, _ = _quantize("fp8", rows, weight.shape[1], input_scale, None, upper_bound)
    _multiply("fp8", codes, weight, scale, weight_scale, None, None, bias, out)
    return out


def fp8_mm(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """The product alone: ``(a * a_scale) (weight * weight_scale)^T + bias``.

    Args:
        a: the bytes of e4m3 as the GPU has it, uint8 [M, K'], K' a multiple of 16.
        weight: the same, [N, K'].
        a_scale: float32 [M] or [1].
        weight_scale: float32 [N] or [1].
        bias: float [N].
        out_dtype: of the result.
    """
    op = "fp8_mm"
    check(op, "a", a, (torch.uint8,), ((a.shape[0], weight.shape[1]),), weight)
    check(op, "a_scale", a_scale, (torch.float32,), ((a.shape[0],), (1,)), weight)
    check(op, "weight_scale", weight_scale, (torch.float32,), ((weight.shape[0],), (1,)), a)
    check(op, "bias", bias, FLOATS, ((weight.shape[0],),), a)
    out = a.new_empty((a.shape[0], weight.shape[0]), dtype=out_dtype)
    if out.numel():
        _multiply("fp8", a, weight, a_scale, weight_scale, None, None, bias, out)
    return out


def _fp8_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    upper_bound: Tensor | None,
    per_token: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    return empty_out(x, weight.shape[0], out_dtype)


OPS.define(
    "fp8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
    "Tensor? upper_bound, bool per_token, ScalarType out_dtype) -> Tensor",
    fp8_linear,
    _fp8_fake,
)
FP8_LINEAR = torch.ops.qcore_rocm.fp8_linear.default


def fp8_block_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    block_n: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """E4m3 with a scale for ``block_n`` x 128 weights, and for 128 activations of a row.

    Activations and factors are as for `fp8_linear`.

    Args:
        x: float [..., K].
        weight: the bytes of e4m3 as the GPU has it, uint8 [N, K'], K' the next multiple of 128.
        weight_scale: float32 [ceil(N / block_n), K' / 128].
        bias: float [N].
        block_n: outputs that share a scale.
        out_dtype: of the result.
    """
    op = "fp8_block_linear"
    if weight.dim() != 2 or weight.shape[1] % _GROUP != 0:
        raise refusal(op, "weight", list(weight.shape), "[N, K'] with K' a multiple of 128")
    if block_n < 1:
        raise refusal(op, "block_n", block_n, "at least 1")
    N, K = weight.shape
    groups = K // _GROUP
    check(op, "weight", weight, (torch.uint8,), ((N, K),), x)
    scales = ((blocks(N, block_n), groups),)
    check(op, "weight_scale", weight_scale, (torch.float32,), scales, x)
    check(op, "bias", bias, FLOATS, ((N,),), x)
    check_rows(op, x, K - _GROUP + 1, K, out_dtype)
    out = empty_out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = as_rows(x)
    M = rows.shape[0]
    codes = rows.new_empty((M, K), dtype=torch.uint8)
    scale = rows.new_empty((M, groups), dtype=torch.float32)
    made = QuantizeGroups(
        address(rows),
        address(codes),
        address(scale),
        rows.stride(0),
        M,
        rows.shape[1],
        groups,
    )
    grid = (blocks(groups, _WAVES), min(M, _MOST_ROWS))
    launch(f"quantize_groups_{FLOAT_NAMES[rows.dtype]}", made, grid, rows.device)
    args = BlockScaledMM(
        address(codes),
        address(weight),
        address(scale),
        address(weight_scale),
        address(bias),
        address(out),
        M,
        N,
        K,
        block_n,
        FLOAT_TYPES[bias.dtype] if bias is not None else 0,
        FLOAT_TYPES[out_dtype],
    )
    tile = 16 if M <= 16 else 64
    grid = (blocks(N, TILE_COLUMNS), blocks(M, tile))
    launch(f"block_scaled_mm_fp8_{tile}", args, grid, rows.device)
    return out


def _fp8_block_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    block_n: int,
    out_dtype: torch.dtype,
) -> Tensor:
    return empty_out(x, weight.shape[0], out_dtype)


OPS.define(
    "fp8_block_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, SymInt block_n, "
    "ScalarType out_dtype) -> Tensor",
    fp8_block_linear,
    _fp8_block_fake,
)
FP8_BLOCK_LINEAR = torch.ops.qcore_rocm.fp8_block_linear.default
