"""Marlin's layout, and products with weights in it.

A weight [K, N] is cut into pieces of 16 inputs by 64 outputs, each in the order in which the
threads of a warp want its codes: int32 [K / 16, N * 16 / pack], ``pack = 32 / bits``. (For 8-bit
activations the pieces are 32 by 32.) Columns of scales are in the orders of
`marlin_permute_scales` of vLLM: one for one group for
all of K, another for several; zero points in the latter, interleaved. For 8-bit activations scales
are always in the former, and zero points not interleaved.

`marlin_gemm` multiplies by kernels that `generate_kernels.py` writes and, with 16-bit activations,
falls back on dequantizing and torch's product where no such kernel was compiled.
"""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake, fake_nothing

__all__ = ["awq_marlin_repack", "gptq_marlin_repack", "marlin_dequantize", "marlin_gemm"]

Tensor = torch.Tensor


def gptq_marlin_repack(
    b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int, is_a_8bit: bool = False
) -> Tensor:
    """Marlin's layout of weights in GPTQ's.

    Args:
        b_q_weight: int32 [K / pack, N].
        size_k: K, a multiple of 16 (32 for 8-bit activations).
        size_n: N, a multiple of 64.
        num_bits: 4 or 8.
        is_a_8bit: whether activations will be int8 or FP8.

    Returns:
        int32 [K / 16, N * 16 / pack].
    """
    library.load()
    return torch.ops.qcore_cuda.gptq_marlin_repack(  # type: ignore[no-any-return]
        b_q_weight, size_k, size_n, num_bits, is_a_8bit
    )


def awq_marlin_repack(
    b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int, is_a_8bit: bool = False
) -> Tensor:
    """Marlin's layout of weights in AWQ's, int32 [K, N / pack]; see `gptq_marlin_repack`."""
    library.load()
    return torch.ops.qcore_cuda.awq_marlin_repack(  # type: ignore[no-any-return]
        b_q_weight, size_k, size_n, num_bits, is_a_8bit
    )


def marlin_dequantize(
    b_q_weight: Tensor,
    b_scales: Tensor,
    b_zeros: Tensor | None,
    global_scale: Tensor | None,
    b_type_id: int,
    size_k: int,
    size_n: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight whole, rounded once.

    Args:
        b_q_weight: int32 [K / 16, N * 16 / pack], not in the order for 8-bit activations.
        b_scales: [G, N], as `marlin_gemm` takes them.
        b_zeros: int32 [G, N / pack] for uint4 and uint8.
        global_scale: float32 [1], with scales of float8_e4m3fn.
        b_type_id: the type of the codes, `ScalarType.id`.
        size_k: K, a multiple of 16.
        size_n: N, a multiple of 64.
        dtype: float16 or bfloat16.

    Returns:
        [K, N] of ``dtype``, contiguous.
    """
    library.load()
    return torch.ops.qcore_cuda.marlin_dequantize(  # type: ignore[no-any-return]
        b_q_weight, b_scales, b_zeros, global_scale, b_type_id, size_k, size_n, dtype
    )


def marlin_gemm(
    a: Tensor,
    c: Tensor | None,
    b_q_weight: Tensor,
    b_bias: Tensor | None,
    b_scales: Tensor,
    a_scales: Tensor | None,
    global_scale: Tensor | None,
    b_zeros: Tensor | None,
    workspace: Tensor,
    b_type_id: int,
    size_m: int,
    size_n: int,
    size_k: int,
    use_atomic_add: bool = False,
    use_fp32_reduce: bool = True,
    is_zp_float: bool = False,
) -> Tensor:
    """``a @ b`` with ``b`` in Marlin's layout.

    Args:
        a: float16 or bfloat16 [M, K]; or int8 or float8_e4m3fn, with ``a_scales``.
        c: the output, or None.
        b_q_weight: int32 [K / 16, N * 16 / pack].
        b_bias: None, or [N] of the result's dtype, in the order of scales for one group.
        b_scales: [G, N], numbers as they are: float8_e4m3fn (G = K / 16) for NVFP4,
            float8_e8m0fnu (G = K / 32) for MXFP4 and MXFP8 (both also as bytes), else float16,
            bfloat16 or float32.
        a_scales: float32, one element or M, for 8-bit activations; else None.
        global_scale: float32, one element, for NVFP4.
        b_zeros: int32 [G, N / pack] for uint4 and uint8; float16 [G, N] with ``is_zp_float``.
        workspace: int32 zeros, one for each processor or more; zeros again afterwards. No two calls
            at a time may share it.
        b_type_id: `ScalarType.id` of uint4, uint4b8, uint8, uint8b128, float8_e4m3fn or
            float4_e2m1f.
        size_m: M.
        size_n: N, a multiple of 64.
        size_k: K, a multiple of 16 (32 for 8-bit activations).
        use_atomic_add: not used; sums are added in a fixed order.
        use_fp32_reduce: not used; sums are always in float32.
        is_zp_float: whether zero points are float16 numbers (HQQ), with float16 ``a``.

    Returns:
        [M, N] of ``a``'s dtype, for 8-bit activations of that of ``c`` or of the scales (bfloat16
        where those have 8 bits too); ``c`` where it is given.
    """
    library.load()
    if c is not None:
        torch.ops.qcore_cuda.marlin_gemm.out(
            a,
            b_q_weight,
            b_bias,
            b_scales,
            a_scales,
            global_scale,
            b_zeros,
            workspace,
            b_type_id,
            size_m,
            size_n,
            size_k,
            use_atomic_add,
            use_fp32_reduce,
            is_zp_float,
            out=c,
        )
        return c
    return torch.ops.qcore_cuda.marlin_gemm(  # type: ignore[no-any-return]
        a,
        c,
        b_q_weight,
        b_bias,
        b_scales,
        a_scales,
        global_scale,
        b_zeros,
        workspace,
        b_type_id,
        size_m,
        size_n,
        size_k,
        use_atomic_add,
        use_fp32_reduce,
        is_zp_float,
    )


@fake("gptq_marlin_repack")
def _gptq_marlin_repack(
    b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int, is_a_8bit: bool = False
) -> Tensor:
    return b_q_weight.new_empty((size_k // 16, size_n * 16 * num_bits // 32))


@fake("awq_marlin_repack")
def _awq_marlin_repack(
    b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int, is_a_8bit: bool = False
) -> Tensor:
    return b_q_weight.new_empty((size_k // 16, size_n * 16 * num_bits // 32))


@fake("marlin_dequantize")
def _marlin_dequantize(
    b_q_weight: Tensor,
    b_scales: Tensor,
    b_zeros_or_none: Tensor | None,
    global_scale: Tensor | None,
    b_type_id: int,
    size_k: int,
    size_n: int,
    dtype: torch.dtype,
) -> Tensor:
    return b_q_weight.new_empty((size_k, size_n), dtype=dtype)


@fake("marlin_gemm")
def _marlin_gemm(
    a: Tensor,
    c_or_none: Tensor | None,
    b_q_weight: Tensor,
    b_bias_or_none: Tensor | None,
    b_scales: Tensor,
    a_scales: Tensor | None,
    global_scale: Tensor | None,
    b_zeros_or_none: Tensor | None,
    workspace: Tensor,
    b_type_id: int,
    size_m: int,
    size_n: int,
    size_k: int,
    use_atomic_add: bool = False,
    use_fp32_reduce: bool = True,
    is_zp_float: bool = False,
) -> Tensor:
    if c_or_none is not None:
        return c_or_none
    dtype = a.dtype
    if dtype.itemsize == 1:
        dtype = torch.float16 if b_scales.dtype == torch.float16 else torch.bfloat16
    return a.new_empty((size_m, size_n), dtype=dtype)


@fake("marlin_linear")
def _marlin_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    g_idx: Tensor | None,
    perm: Tensor | None,
    a_scales: Tensor | None,
    global_scale: Tensor | None,
    bias: Tensor | None,
    workspace: Tensor,
    b_type_id: int,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


fake_nothing("marlin_gemm.out")
