"""AITER's products as ops of torch, so that a layer can be traced through them.

8-bit floats come in as bytes: torch copies and compares those on every device.
"""

from __future__ import annotations

import torch

from qcore_rocm import aiter_package

__all__ = ["gemm_a8w8", "gemm_a8w8_blockscale", "gemm_a8w8_bpreshuffle"]

Tensor = torch.Tensor


def _out(a: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
    return a.new_empty((a.shape[0], weight.shape[0]), dtype=out_dtype)


@torch.library.custom_op("qcore_rocm_aiter::gemm_a8w8", mutates_args=())
def gemm_a8w8(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Tensor:
    """``aiter.gemm_a8w8_CK``.

    Args:
        a: [M, K], int8 or bytes.
        weight: [N, K], as ``a``.
        a_scale: float32 [M, 1], or [1] with a weight scale of [1].
        weight_scale: float32 [N, 1], or [1].
        bias: [N] of the output's dtype.
        dtype: of ``a`` and ``weight``.
        out_dtype: float16 or bfloat16.
    """
    if a.shape[0] == 0:
        return _out(a, weight, out_dtype)
    run = aiter_package.function("gemm_a8w8_CK")
    sides = a.view(dtype), weight.view(dtype)
    out: Tensor = run(*sides, a_scale, weight_scale, bias, out_dtype)
    return out


@gemm_a8w8.register_fake
def _(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Tensor:
    return _out(a, weight, out_dtype)


@torch.library.custom_op("qcore_rocm_aiter::gemm_a8w8_bpreshuffle", mutates_args=())
def gemm_a8w8_bpreshuffle(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Tensor:
    """``aiter.gemm_a8w8_bpreshuffle``: ``weight`` as `qcore_rocm.kernels.aiter_shuffle` has it."""
    if a.shape[0] == 0:
        return _out(a, weight, out_dtype)
    run = aiter_package.function("gemm_a8w8_bpreshuffle")
    sides = a.view(dtype), weight.view(dtype)
    out: Tensor = run(*sides, a_scale, weight_scale, None, out_dtype)
    return out


@torch.library.custom_op("qcore_rocm_aiter::gemm_a8w8_blockscale", mutates_args=())
def gemm_a8w8_blockscale(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Tensor:
    """``aiter.gemm_a8w8_blockscale``: scales [M, K / 128] and [ceil(N / 128), K / 128]."""
    if a.shape[0] == 0:
        return _out(a, weight, out_dtype)
    run = aiter_package.function("gemm_a8w8_blockscale")
    out: Tensor = run(a.view(dtype), weight.view(dtype), a_scale, weight_scale, out_dtype)
    return out


@gemm_a8w8_bpreshuffle.register_fake
@gemm_a8w8_blockscale.register_fake
def _(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Tensor:
    return _out(a, weight, out_dtype)
