"""AITER's products as ops of torch, so that a layer can be traced through them.

8-bit floats come in as bytes: torch copies and compares those on every device.
"""

from __future__ import annotations

import torch

from qcore_rocm import aiter_package

__all__ = ["gemm_a4w4", "gemm_a8w8", "gemm_a8w8_blockscale", "gemm_a8w8_bpreshuffle", "hipb_mm"]

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


@torch.library.custom_op("qcore_rocm_aiter::hipb_mm", mutates_args=())
def hipb_mm(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    shuffled: bool,
) -> Tensor:
    """``aiter.hipb_mm``: hipBLASLt, which chooses the solution by its heuristic.

    Args:
        a: bytes [M, K].
        weight: bytes [N, K].
        a_scale: float32 [M, 1], or [1] with a weight scale of [1].
        weight_scale: float32 [1, N], or [1].
        bias: [N] of the output's dtype.
        dtype: of ``a`` and ``weight``.
        out_dtype: bfloat16, or float16 too with one scale each.
        shuffled: whether ``weight`` is as `qcore_rocm.kernels.aiter_shuffle` has it.
    """
    if a.shape[0] == 0:
        return _out(a, weight, out_dtype)
    aiter_package.start_hipblaslt(a.device)
    run = aiter_package.function("hipb_mm")
    sides = a.view(dtype), weight.view(dtype).t()
    out: Tensor = run(*sides, -1, bias, out_dtype, a_scale, weight_scale, None, shuffled)
    return out


@hipb_mm.register_fake
def _(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    shuffled: bool,
) -> Tensor:
    return _out(a, weight, out_dtype)


@torch.library.custom_op("qcore_rocm_aiter::gemm_a4w4", mutates_args=())
def gemm_a4w4(a: Tensor, weight: Tensor, a_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """``aiter.gemm_a4w4``: MXFP4 by MXFP4, bfloat16 out.

    Args:
        a: two codes in a byte, [M, K / 2].
        weight: the same, [N, K / 2], as `qcore_rocm.kernels.aiter_shuffle` has it.
        a_scale: e8m0 bytes, of `qcore_rocm.kernels.aiter_shuffle.shuffle_scale`.
        weight_scale: the same.
    """
    M, N = a.shape[0], weight.shape[0]
    if M == 0:
        return _out(a, weight, torch.bfloat16)
    run = aiter_package.function("gemm_a4w4")
    sides = (
        *(codes.view(torch.float4_e2m1fn_x2) for codes in (a, weight)),
        *(scale.view(torch.float8_e8m0fnu) for scale in (a_scale, weight_scale)),
    )
    if "out" in (aiter_package.parameters("gemm_a4w4") or ()):
        padded = a.new_empty((-(-M // 32) * 32, N), dtype=torch.bfloat16)
        out: Tensor = run(*sides, padded, bpreshuffle=True)
    else:
        out = run(*sides, dtype=torch.bfloat16, bpreshuffle=True)
    return out[:M]


@gemm_a4w4.register_fake
def _(a: Tensor, weight: Tensor, a_scale: Tensor, weight_scale: Tensor) -> Tensor:
    return _out(a, weight, torch.bfloat16)
