"""Activations to int8, e4m3 and the block formats, as `qcore.numerics.activation_quant` does it."""

import torch
import triton
import triton.language as tl

from qcore.triton.jit.numbers import (
    decode_e8m0,
    encode_mx_scale,
    has_no_number,
    nearest_integer,
    round_e2m1,
    round_e4m3,
)

__all__ = ["group_fp8_quant", "int8_quant", "round_blocks"]


@triton.jit
def _int8_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    azp_ptr,
    K,
    K_padded,
    x_stride,
    STATIC: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    x_row = x_ptr + row.to(tl.int64) * x_stride
    columns = tl.arange(0, BLOCK)
    zero = 0.0
    if STATIC:
        scale = tl.load(scale_ptr)
        if not SYMMETRIC:
            zero = tl.load(azp_ptr).to(tl.float32)
    else:
        high = tl.zeros([BLOCK], tl.float32)
        low = tl.zeros([BLOCK], tl.float32)
        endless = tl.zeros([BLOCK], tl.int32)
        for start in range(0, K, BLOCK):
            x = tl.load(x_row + start + columns, mask=start + columns < K, other=0.0)
            x = x.to(tl.float32)
            high = tl.maximum(high, x)
            low = tl.minimum(low, x)
            endless += tl.where(tl.abs(x) < float("inf"), 0, 1)
        highest = tl.max(high, axis=0)
        lowest = tl.min(low, axis=0)
        finite = tl.sum(endless, axis=0) == 0
        if SYMMETRIC:
            scale = tl.math.div_rn(tl.maximum(highest, -lowest), 127.0)
        else:
            scale = tl.math.div_rn(highest - lowest, 255.0)
        scale = tl.where((scale == 0.0) | (finite == 0), 1.0, scale)
        if not SYMMETRIC:
            zero = -128.0 - nearest_integer(tl.math.div_rn(lowest, scale))
            zero = tl.where(finite, tl.minimum(tl.maximum(zero, -128.0), 127.0), 0.0)
            tl.store(azp_ptr + row, zero.to(tl.int32))
        tl.store(scale_ptr + row, tl.where(finite, scale, float("nan")))
    least = -127.0 if SYMMETRIC else -128.0
    for start in range(0, K_padded, BLOCK):
        x = tl.load(x_row + start + columns, mask=start + columns < K, other=0.0).to(tl.float32)
        codes = nearest_integer(tl.math.div_rn(x, scale)) + zero
        codes = tl.where(codes == codes, tl.minimum(tl.maximum(codes, least), 127.0), 0.0)
        target = codes_ptr + row.to(tl.int64) * K_padded + start + columns
        tl.store(target, codes.to(tl.int8), mask=start + columns < K_padded)


def int8_quant(
    x: torch.Tensor,
    K_padded: int,
    scale: torch.Tensor | None,
    azp: torch.Tensor | None,
    symmetric: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes int8 [M, K_padded] of ``x`` [M, K], the scale and the zero point: as given, or [M]."""
    M, K = x.shape
    codes = torch.empty((M, K_padded), dtype=torch.int8, device=x.device)
    static = scale is not None
    if scale is None:
        scale = torch.empty((M,), dtype=torch.float32, device=x.device)
        azp = None if symmetric else torch.empty((M,), dtype=torch.int32, device=x.device)
    block = min(4096, triton.next_power_of_2(K_padded))
    _int8_kernel[(M,)](
        x,
        codes,
        scale,
        azp if azp is not None else scale,
        K,
        K_padded,
        x.stride(0),
        STATIC=static,
        SYMMETRIC=symmetric,
        BLOCK=block,
        num_warps=4 if block <= 1024 else 8,
    )
    return codes, scale, azp


@triton.jit
def _fp8_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    count,
    groups,
    K,
    x_stride,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, group = index // groups, index % groups
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    there = (index < count)[:, None]
    x = tl.load(x_ptr + row[:, None] * x_stride + column, mask=there & (column < K), other=0.0)
    x = x.to(tl.float32)
    scale = tl.math.div_rn(tl.max(tl.abs(x), axis=1), 448.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    wrong = has_no_number(x, 1) | (scale == float("inf"))
    codes = tl.math.div_rn(x, scale[:, None])
    codes = round_e4m3(tl.minimum(tl.maximum(codes, -448.0), 448.0))
    codes = tl.where(wrong[:, None], 0.0, codes)
    target = codes_ptr + row[:, None] * (groups * GROUP) + column
    tl.store(target, codes.to(codes_ptr.dtype.element_ty), mask=there)
    tl.store(scale_ptr + index, tl.where(wrong, float("nan"), scale), mask=index < count)


def group_fp8_quant(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes e4m3 [M, G * group] of ``x`` [M, K], and scales float32 [M, G]."""
    M, K = x.shape
    groups = -(-K // group)
    codes = torch.empty((M, groups * group), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((M, groups), dtype=torch.float32, device=x.device)
    block = 16
    _fp8_kernel[(triton.cdiv(M * groups, block),)](
        x, codes, scale, M * groups, groups, K, x.stride(0), GROUP=group, BLOCK=block
    )
    return codes, scale


@triton.jit
def _round_kernel(
    x_ptr,
    out_ptr,
    outer_ptr,
    count,
    per_row,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    OUTER_BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    at = index[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + at, mask=there[:, None], other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(x), axis=1)
    amax = tl.where(has_no_number(x, 1), float("nan"), amax)
    if KIND == "nvfp4":
        outer = tl.load(outer_ptr + (index // per_row if OUTER_BY_ROW else index * 0), mask=there)
        inner = tl.math.div_rn(tl.math.div_rn(amax, 6.0), outer)
        inner = round_e4m3(tl.where(inner > 448.0, 448.0, inner))
        step = inner * outer
        positive = step > 0.0
        scaled = tl.math.div_rn(x, tl.where(positive, step, 1.0)[:, None])
        values = round_e2m1(tl.where(positive[:, None], scaled, 0.0)) * inner[:, None]
    else:
        EMAX: tl.constexpr = 8 if KIND == "mxfp8" else 2
        step = decode_e8m0(encode_mx_scale(amax, EMAX))[:, None]
        scaled = tl.math.div_rn(x, step)
        if KIND == "mxfp8":
            scaled = tl.where(scaled > 448.0, 448.0, scaled)
            scaled = round_e4m3(tl.where(scaled < -448.0, -448.0, scaled))
        else:
            scaled = round_e2m1(scaled)
        values = scaled * step
    tl.store(out_ptr + at, values.to(tl.bfloat16), mask=there[:, None])


def round_blocks(x: torch.Tensor, kind: str, outer: torch.Tensor | None) -> torch.Tensor:
    """``x`` [M, K], contiguous, as the block format has it: bfloat16, which holds it exactly.

    Args:
        x: float.
        kind: ``nvfp4``, ``mxfp4`` or ``mxfp8``.
        outer: NVFP4's scale of the scales, float32 [1] or [M]; the result lacks it.
    """
    M, K = x.shape
    size = 16 if kind == "nvfp4" else 32
    out = torch.empty((M, K), dtype=torch.bfloat16, device=x.device)
    count, block = M * K // size, 64
    _round_kernel[(triton.cdiv(count, block),)](
        x,
        out,
        outer if outer is not None else x,
        count,
        K // size,
        KIND=kind,
        SIZE=size,
        OUTER_BY_ROW=outer is not None and outer.numel() > 1,
        BLOCK=block,
    )
    return out
