"""Products of 8-bit codes: int8 with zero points, e4m3 with scales by block.

Weights are [N, K'] by rows, K' a multiple of 128 with zeros behind the layer's own inputs, and so
are the codes of activations: inputs need no masks.
"""

import torch
import triton
import triton.language as tl

from qcore.triton.jit.numbers import tile_of

__all__ = ["fp8_block_mm", "int8_mm"]

_TOGETHER = 8


@triton.jit
def _int8_kernel(
    a_ptr,
    b_ptr,
    a_scale_ptr,
    b_scale_ptr,
    azp_ptr,
    sums_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    A_SCALES: tl.constexpr,
    B_SCALES: tl.constexpr,
    AZP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), TOGETHER)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    has_m, has_n = m < M, n < N
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    b_ptrs = b_ptr + n.to(tl.int64)[None, :] * K + k[:, None]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for _ in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=has_m[:, None], other=0)
        b = tl.load(b_ptrs, mask=has_n[None, :], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    if AZP:
        azp = tl.load(azp_ptr + (m if A_SCALES else m * 0), mask=has_m, other=0)
        of_row = tl.load(sums_ptr + n, mask=has_n, other=0)
        sums -= azp[:, None] * of_row[None, :]
    a_scale = tl.load(a_scale_ptr + (m if A_SCALES else m * 0), mask=has_m, other=0.0)
    b_scale = tl.load(b_scale_ptr + (n if B_SCALES else n * 0), mask=has_n, other=0.0)
    out = sums.to(tl.float32) * a_scale[:, None] * b_scale[None, :]
    if HAS_BIAS:
        out += tl.load(bias_ptr + n, mask=has_n, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=has_m[:, None] & has_n[None, :])


def int8_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    azp: torch.Tensor | None,
    sums: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """``out`` [M, N] of int8 [M, K'] and [N, K']; ``sums`` int32 [N] go with zero points."""
    M, N = out.shape
    block_m, block_n, warps, stages = _int8_tile(M)
    _int8_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
        a,
        b,
        a_scale,
        b_scale,
        azp if azp is not None else a_scale,
        sums if sums is not None else b_scale,
        bias if bias is not None else b_scale,
        out,
        M,
        N,
        a.shape[1],
        A_SCALES=a_scale.numel() > 1,
        B_SCALES=b_scale.numel() > 1,
        AZP=azp is not None,
        HAS_BIAS=bias is not None,
        TOGETHER=_TOGETHER,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=128,
        num_warps=warps,
        num_stages=stages,
    )


def _int8_tile(M: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, warps, stages."""
    if M <= 16:
        return 16, 32, 4, 5
    if M <= 32:
        return 32, 64, 4, 4
    if M <= 64:
        return 64, 64, 4, 4
    return 128, 128, 8, 3


@triton.jit
def _fp8_block_kernel(
    a_ptr,
    b_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    groups,
    HAS_BIAS: tl.constexpr,
    WEIGHT_ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), TOGETHER)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    has_m, has_n = m < M, n < N
    k = tl.arange(0, BLOCK_K)
    K = groups * BLOCK_K
    a_ptrs = a_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    b_ptrs = b_ptr + n.to(tl.int64)[None, :] * K + k[:, None]
    a_scale_ptrs = a_scale_ptr + m.to(tl.int64) * groups
    b_scale_ptrs = b_scale_ptr + (n // WEIGHT_ROWS) * groups
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(groups):
        a = tl.load(a_ptrs, mask=has_m[:, None], other=0.0)
        b = tl.load(b_ptrs, mask=has_n[None, :], other=0.0)
        a_scale = tl.load(a_scale_ptrs + group, mask=has_m, other=0.0)
        b_scale = tl.load(b_scale_ptrs + group, mask=has_n, other=0.0)
        total += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=has_n, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=has_m[:, None] & has_n[None, :])


def fp8_block_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    block: tuple[int, int],
) -> None:
    """``out`` [M, N] of e4m3 [M, K'] and [N, K'].

    Args:
        a: codes.
        b: codes.
        a_scale: float32 [M, K' / bk].
        b_scale: float32 [ceil(N / bn), K' / bk].
        bias: [N], or None.
        out: written.
        block: (bn, bk); bk also of the activations, a power of two from 32 on.
    """
    M, N = out.shape
    rows, columns = block
    block_m, block_n, warps, stages = _fp8_tile(M)
    _fp8_block_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
        a,
        b,
        a_scale,
        b_scale,
        bias if bias is not None else b_scale,
        out,
        M,
        N,
        a.shape[1] // columns,
        HAS_BIAS=bias is not None,
        WEIGHT_ROWS=rows,
        TOGETHER=_TOGETHER,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=columns,
        num_warps=warps,
        num_stages=stages,
    )


def _fp8_tile(M: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, warps, stages."""
    if M <= 16:
        return 16, 32, 4, 5
    if M <= 32:
        return 32, 64, 4, 4
    if M <= 64:
        return 64, 64, 4, 4
    return 64, 128, 4, 4
