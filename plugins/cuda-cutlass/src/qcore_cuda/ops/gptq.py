"""Products with GPTQ's weights: 2, 3, 4 and 8 bits, float16 and bfloat16 activations.

===========  =============================  ======================================================
qweight      int32 [K * bit / 32, N]        codes packed along K, without gaps, lowest bits first
qzeros       int32 [G, N * bit / 32]        zero points packed along N, likewise
scales       float [G, N]                   ``w[k, n] = (code - zero) * scale``
===========  =============================  ======================================================

Version 1 of the format stores zero points less one, taken off all codes of a word at once; a zero
point of 0 thus wraps around to the greatest code and borrows from its neighbour. Adding to the word
undoes that; with 3 bits, which cross words, one is added to each code, modulo 8.
"""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake, fake_nothing

__all__ = ["gptq_dequantize", "gptq_gemm", "gptq_shuffle"]

Tensor = torch.Tensor


def gptq_shuffle(q_weight: Tensor, q_perm: Tensor, bit: int) -> None:
    """Reorder weights in place, for `gptq_gemm` with ``use_exllama=True``.

    Args:
        q_weight: int32 [K * bit / 32, N].
        q_perm: int32 [K], or empty. Row k becomes what was row ``q_perm[k]``: for weights in
            activation order, ``argsort(g_idx)``, so that the inputs of a group lie together.
        bit: 2, 3, 4 or 8.

    Within a word, 4 bits come as elements 0 2 4 6 1 3 5 7 and 2 bits as the even, then the odd
    elements (as vLLM's op leaves them); words of 3 and 8 bits stay as they are.
    """
    library.load()
    torch.ops.qcore_cuda.gptq_shuffle(q_weight, q_perm, bit)


def gptq_gemm(
    a: Tensor,
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor | None,
    use_exllama: bool,
    use_v2_format: bool,
    bit: int,
) -> Tensor:
    """``a`` times a weight in GPTQ's layout.

    Args:
        a: float16 or bfloat16 [..., K]; may be strided.
        b_q_weight: int32 [K * bit / 32, N], N a multiple of 8; after `gptq_shuffle` where
            ``use_exllama``.
        b_gptq_qzeros: int32 [G, N * bit / 32].
        b_gptq_scales: float16, bfloat16 or float32 [G, N].
        b_g_idx: None or empty for groups of K / G inputs in order. With ``use_exllama`` int32 [K],
            the permutation that `gptq_shuffle` was given; without, int32 [K], the group of each
            input, any at all.
        use_exllama: whether the weight was shuffled.
        use_v2_format: whether zero points are stored as they are, not less one.
        bit: 2, 3, 4 or 8.

    Returns:
        [..., N] of ``a``'s dtype.

    Few rows with groups of a multiple of 32 inputs (or one group) run on weights as they are:
    their products with integers are summed up in float32 and scaled there. Otherwise weights are
    dequantized, rounded to ``a``'s dtype, and multiplied by torch.
    """
    library.load()
    return torch.ops.qcore_cuda.gptq_gemm(  # type: ignore[no-any-return]
        a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_exllama, use_v2_format, bit
    )


def gptq_dequantize(
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor | None = None,
    use_exllama: bool = False,
    use_v2_format: bool = False,
    bit: int = 4,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weight [K, N], in the order of the inputs also where it was shuffled with a permutation.

    Args:
        b_q_weight: as of `gptq_gemm`; so are the others.
        b_gptq_qzeros: zero points.
        b_gptq_scales: scales.
        b_g_idx: groups, or the permutation.
        use_exllama: whether the weight was shuffled.
        use_v2_format: how zero points are stored.
        bit: 2, 3, 4 or 8.
        dtype: float16 or bfloat16; None for that of the scales.
    """
    library.load()
    return torch.ops.qcore_cuda.gptq_dequantize(  # type: ignore[no-any-return]
        b_q_weight,
        b_gptq_qzeros,
        b_gptq_scales,
        b_g_idx,
        use_exllama,
        use_v2_format,
        bit,
        dtype,
    )


fake_nothing("gptq_shuffle")


@fake("gptq_gemm")
def _gptq_gemm(
    a: Tensor,
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor | None,
    use_exllama: bool,
    use_v2_format: bool,
    bit: int,
) -> Tensor:
    return a.new_empty((*a.shape[:-1], b_q_weight.shape[1]))


@fake("gptq_dequantize")
def _gptq_dequantize(
    b_q_weight: Tensor,
    b_gptq_qzeros: Tensor,
    b_gptq_scales: Tensor,
    b_g_idx: Tensor | None,
    use_exllama: bool,
    use_v2_format: bool,
    bit: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    words, N = b_q_weight.shape
    return b_q_weight.new_empty((words * 32 // bit, N), dtype=dtype or b_gptq_scales.dtype)


def _columns(q_weight: Tensor) -> int:
    """Of words in GPTQ's order, or of lanes."""
    return q_weight.shape[1] * (32 if q_weight.dim() == 3 else 1)


@fake("wna16_linear")
def _wna16_linear(
    a: Tensor,
    q_weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    g_idx: Tensor | None,
    bias: Tensor | None,
    bits: int,
    zero: int,
    group_size: int,
    in_features: int,
    out_features: int,
    out_float: bool = False,
    few_rows: int = -1,
) -> Tensor:
    dtype = torch.float32 if out_float else a.dtype
    return a.new_empty((*a.shape[:-1], out_features), dtype=dtype)


@fake("wna16_small_m")
def _wna16_small_m(
    a: Tensor,
    q_weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    zero: int,
    group_size: int,
    column_warps: int = 0,
    k_warps: int = 0,
    split: int = 0,
) -> Tensor:
    return a.new_empty((*a.shape[:-1], q_weight.shape[1]))


@fake("wna16_sm90")
def _wna16_sm90(
    a: Tensor,
    q_weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    zero: int,
    group_size: int,
    rows: int = 0,
    columns: int = 128,
    parts: int = 0,
) -> Tensor:
    return a.new_empty((*a.shape[:-1], _columns(q_weight)))


@fake("wna16_mid_m")
def _wna16_mid_m(
    a: Tensor,
    q_weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    zero: int,
    group_size: int,
    row_tiles: int = 0,
    column_warps: int = 0,
    split: int = 0,
    k_warps: int = 0,
) -> Tensor:
    return a.new_empty((*a.shape[:-1], _columns(q_weight)))


@fake("small_float_linear")
def _small_float_linear(
    a: Tensor,
    q_weight: Tensor,
    scales: Tensor,
    column_scales: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    in_features: int,
    out_features: int,
    out_float: bool = False,
    way: int = -1,
) -> Tensor:
    dtype = torch.float32 if out_float else a.dtype
    return a.new_empty((*a.shape[:-1], out_features), dtype=dtype)
