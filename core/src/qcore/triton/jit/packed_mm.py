"""Products with weights that are made 16-bit floats inside: integers, e2m1, e4m3, with scales.

The weight is [K' / 64 * 32, N'] bytes with two codes in each (4 bits), or [K', N'] (8 bits): see
`qcore.triton.packing`. A step is 64 inputs, its first half in the bytes' low halves.
"""

import torch
import triton
import triton.language as tl

from qcore.triton.jit.numbers import decode_e2m1, decode_e4m3, decode_e8m0, round_bfloat16, tile_of

__all__ = ["packed_mm"]

_TOGETHER = 8
_FILLING = 264  # programs that keep a large GPU busy


@triton.jit
def _half_weight(
    codes,
    first,
    n,
    has_n,
    groups,
    N_padded,
    scales_ptr,
    zeros_ptr,
    KIND: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    DTYPE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Weights [32, BLOCK_N] of the inputs from ``first`` on."""
    if GROUP % 32 == 0:  # one group for all 32; 0 is one group for all of K
        group = tl.full([1], first, tl.int32)
    else:
        group = first + tl.arange(0, 32)
    group = group * 0 if GROUP == 0 else tl.minimum(group // GROUP, groups - 1)
    at = group.to(tl.int64)[:, None] * N_padded + n[None, :]
    scale = tl.load(scales_ptr + at, mask=has_n[None, :], other=0)
    if SCALES == "e4m3":
        scale = decode_e4m3(scale)
    elif SCALES == "e8m0":
        scale = decode_e8m0(scale)
    else:
        scale = scale.to(tl.float32)
    if KIND == "e2m1":
        weight = decode_e2m1(codes)
    elif KIND == "e4m3":
        weight = decode_e4m3(codes)
    elif HAS_ZEROS:
        zeros = tl.load(zeros_ptr + at, mask=has_n[None, :], other=0)
        weight = (codes.to(tl.int32) - zeros.to(tl.int32)).to(tl.float32)
    else:
        weight = (codes.to(tl.int32) - ZERO).to(tl.float32)
    weight *= scale
    if UPCAST:
        if tl.bfloat16 == DTYPE:
            return round_bfloat16(weight)
        return weight.to(DTYPE).to(tl.float32)
    return weight.to(DTYPE)


@triton.jit
def _packed_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    factor_ptr,
    row_factor_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    N_padded,
    groups,
    steps,
    steps_each,
    x_stride,
    KIND: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    ROW_FACTORS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    UPCAST: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), TOGETHER)
    part = tl.program_id(1)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    has_m, has_n = m < M, n < N_padded
    k = tl.arange(0, 32)
    x_rows = x_ptr + m.to(tl.int64)[:, None] * x_stride
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(part * steps_each, tl.minimum((part + 1) * steps_each, steps)):
        first = step * 64
        if KIND == "e2m1" or KIND == "int4":
            rows = (step * 32 + k).to(tl.int64)[:, None] * N_padded
            both = tl.load(codes_ptr + rows + n[None, :], mask=has_n[None, :], other=0)
            low, high = both & 15, both >> 4
        else:
            rows = (first + k).to(tl.int64)[:, None] * N_padded
            low = tl.load(codes_ptr + rows + n[None, :], mask=has_n[None, :], other=0)
            rows += N_padded * 32
            high = tl.load(codes_ptr + rows + n[None, :], mask=has_n[None, :], other=0)
        for half in tl.static_range(2):
            start = first + half * 32
            codes = high if half else low
            weight = _half_weight(
                codes,
                start,
                n,
                has_n,
                groups,
                N_padded,
                scales_ptr,
                zeros_ptr,
                KIND,
                SCALES,
                GROUP,
                ZERO,
                HAS_ZEROS,
                DTYPE,
                UPCAST,
            )
            column = start + k[None, :]
            x = tl.load(x_rows + column, mask=has_m[:, None] & (column < K), other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
            total = tl.dot(x, weight, total)
    if SPLIT > 1:
        at = (part * M + m).to(tl.int64)[:, None] * N_padded + n[None, :]
        tl.store(out_ptr + at, total, mask=has_m[:, None] & has_n[None, :])
    else:
        _finish(
            total,
            m,
            n,
            M,
            N,
            factor_ptr,
            row_factor_ptr,
            bias_ptr,
            out_ptr,
            HAS_FACTOR,
            ROW_FACTORS,
            HAS_BIAS,
        )


@triton.jit
def _finish(
    total,
    m,
    n,
    M,
    N,
    factor_ptr,
    row_factor_ptr,
    bias_ptr,
    out_ptr,
    HAS_FACTOR: tl.constexpr,
    ROW_FACTORS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Factors of outputs, of rows, the bias."""
    has_m, has_n = m < M, n < N
    if HAS_FACTOR:
        total *= tl.load(factor_ptr + n, mask=has_n, other=0.0)[None, :]
    if ROW_FACTORS == 1:
        total *= tl.load(row_factor_ptr)
    elif ROW_FACTORS == 2:
        total *= tl.load(row_factor_ptr + m, mask=has_m, other=0.0)[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=has_n, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=has_m[:, None] & has_n[None, :])


@triton.jit
def _sum_kernel(
    parts_ptr,
    factor_ptr,
    row_factor_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    N_padded,
    split,
    HAS_FACTOR: tl.constexpr,
    ROW_FACTORS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.program_id(0) + tl.arange(0, 1)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([1, BLOCK_N], tl.float32)
    for part in range(split):
        at = (part * M + m).to(tl.int64)[:, None] * N_padded + n[None, :]
        total += tl.load(parts_ptr + at, mask=(n < N)[None, :], other=0.0)
    _finish(
        total,
        m,
        n,
        M,
        N,
        factor_ptr,
        row_factor_ptr,
        bias_ptr,
        out_ptr,
        HAS_FACTOR,
        ROW_FACTORS,
        HAS_BIAS,
    )


def packed_mm(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    factor: torch.Tensor | None,
    row_factor: torch.Tensor | None,
    bias: torch.Tensor | None,
    kind: str,
    zero: int,
    group: int,
    out: torch.Tensor,
    upcast: bool,
) -> None:
    """``out`` [M, N] of ``x`` [M, K] and packed weights.

    Args:
        x: float16 or bfloat16; rows may be apart.
        codes: see the module.
        scales: [G, N']: floats, or bytes of e4m3 (with ``e2m1`` and groups of 16) or else of e8m0.
        zeros: uint8 [G, N'], or None.
        factor: float32 [N'], multiplies outputs; or None.
        row_factor: float32 [1] or [M], multiplies rows; or None.
        bias: [N], or None.
        kind: of the codes: ``int4``, ``int8`` (unsigned), ``e2m1``, ``e4m3``.
        zero: the zero of codes without zero points.
        group: inputs that share a scale; 0 for all.
        out: written.
        upcast: multiply in float32.
    """
    M, N = out.shape
    K, N_padded = x.shape[1], codes.shape[1]
    steps = codes.shape[0] // (32 if kind in ("int4", "e2m1") else 64)
    block_m, block_n, warps, stages = _tile(M)
    tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    split = max(1, min(_FILLING // tiles, steps // 4, 16)) if M <= 64 else 1
    steps_each = triton.cdiv(steps, split)
    split = triton.cdiv(steps, steps_each)
    form = "float"
    if scales.dtype == torch.uint8:
        form = "e4m3" if kind == "e2m1" and group == 16 else "e8m0"
    first = out
    if split > 1:
        first = torch.empty((split, M, N_padded), dtype=torch.float32, device=x.device)
    ends = (
        factor if factor is not None else scales,
        row_factor if row_factor is not None else scales,
        bias if bias is not None else scales,
    )
    rows = 0 if row_factor is None else (1 if row_factor.numel() == 1 else 2)
    ending = {
        "HAS_FACTOR": factor is not None,
        "ROW_FACTORS": rows,
        "HAS_BIAS": bias is not None,
    }
    _packed_kernel[(tiles, split)](
        x,
        codes,
        scales,
        zeros if zeros is not None else codes,
        *ends,
        first,
        M,
        N,
        K,
        N_padded,
        scales.shape[0],
        steps,
        steps_each,
        x.stride(0),
        KIND=kind,
        SCALES=form,
        GROUP=group,
        ZERO=zero,
        HAS_ZEROS=zeros is not None,
        **ending,
        SPLIT=split,
        UPCAST=upcast,
        TOGETHER=_TOGETHER,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=warps,
        num_stages=stages,
    )
    if split > 1:
        _sum_kernel[(M, triton.cdiv(N, 512))](
            first, *ends, out, M, N, N_padded, split, **ending, BLOCK_N=512
        )


def _tile(M: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, warps, stages."""
    if M <= 16:
        return 16, 64, 4, 5
    if M <= 32:
        return 32, 64, 4, 4
    if M <= 64:
        return 64, 64, 4, 4
    return 128, 128, 8, 3
