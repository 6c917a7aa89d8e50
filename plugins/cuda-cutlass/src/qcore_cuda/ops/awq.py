"""Products with AWQ's weights: 4 bits, zero points, float16 and bfloat16.

====================  =====================  ====================================================
_kernel               int32 [K, N / 8]       nibble i of word j is column 8j + [0 2 4 6 1 3 5 7][i]
_zeros                int32 [G, N / 8]       packed likewise
_scaling_factors      float [G, N]           ``w[k, n] = (code - zero) * scale``
====================  =====================  ====================================================

K may be any multiple of G. ``split_k_iters``, ``thx`` and ``thy`` are there for the callers of
vLLM's ops, which divide their work by them; here they change nothing.
"""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake

__all__ = ["awq_dequantize", "awq_gemm"]

Tensor = torch.Tensor


def awq_dequantize(
    _kernel: Tensor,
    _scaling_factors: Tensor,
    _zeros: Tensor,
    split_k_iters: int = 0,
    thx: int = 0,
    thy: int = 0,
) -> Tensor:
    """The weight [K, N], of the scales' dtype.

    Args:
        _kernel: int32 [K, N / 8].
        _scaling_factors: float16 or bfloat16 [G, N].
        _zeros: int32 [G, N / 8].
        split_k_iters: not used.
        thx: not used.
        thy: not used.
    """
    library.load()
    return torch.ops.qcore_cuda.awq_dequantize(  # type: ignore[no-any-return]
        _kernel, _scaling_factors, _zeros, split_k_iters, thx, thy
    )


def awq_gemm(
    _in_feats: Tensor,
    _kernel: Tensor,
    _scaling_factors: Tensor,
    _zeros: Tensor,
    split_k_iters: int = 8,
) -> Tensor:
    """``_in_feats`` times a weight in AWQ's layout.

    Args:
        _in_feats: float16 or bfloat16 [..., K]; may be strided.
        _kernel: int32 [K, N / 8].
        _scaling_factors: float16 or bfloat16 [G, N].
        _zeros: int32 [G, N / 8].
        split_k_iters: not used.

    Returns:
        [..., N] of the dtype of ``_in_feats``.

    Few rows with groups of a multiple of 32 inputs (or one group) and N a multiple of 32 run on
    weights as they are; otherwise the weight is dequantized first.
    """
    library.load()
    return torch.ops.qcore_cuda.awq_gemm(  # type: ignore[no-any-return]
        _in_feats, _kernel, _scaling_factors, _zeros, split_k_iters
    )


@fake("awq_dequantize")
def _awq_dequantize(
    _kernel: Tensor,
    _scaling_factors: Tensor,
    _zeros: Tensor,
    split_k_iters: int,
    thx: int,
    thy: int,
) -> Tensor:
    K, words = _kernel.shape
    return _scaling_factors.new_empty((K, words * 8))


@fake("awq_gemm")
def _awq_gemm(
    _in_feats: Tensor,
    _kernel: Tensor,
    _scaling_factors: Tensor,
    _zeros: Tensor,
    split_k_iters: int,
) -> Tensor:
    return _in_feats.new_empty((*_in_feats.shape[:-1], _kernel.shape[1] * 8))


@fake("awq_gemm_divided")
def _awq_gemm_divided(
    _in_feats: Tensor,
    _kernel: Tensor,
    _scaling_factors: Tensor,
    _zeros: Tensor,
    few_rows: int,
    column_warps: int = 0,
    k_warps: int = 0,
    split: int = 0,
) -> Tensor:
    return _in_feats.new_empty((*_in_feats.shape[:-1], _kernel.shape[1] * 8))
