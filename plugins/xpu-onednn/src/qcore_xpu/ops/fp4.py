"""Products with weights of e2m1. `fp4_gemm` has the contract of vLLM's op.

=======  ==================  ===============================================================
A, B     uint8 (or           two codes in a byte, the first in the low half: A [..., K / 2],
         float4_e2m1fn_x2)   B [K / 2, N], the transposed view of a contiguous [N, K / 2]
A_scale  [M, K / g]          e8m0, e4m3 or float; uint8 is taken for e8m0, and with groups of
                             16, as NVFP4 has them, for e4m3
B_scale  [K / g, N]          the same
=======  ==================  ===============================================================

`fp4_gemm_w4a8` takes an A of e4m3 and `fp4_gemm_w4a16` one of floats; they are not vLLM's.
"""

from __future__ import annotations

import torch

from qcore_xpu.ops.checks import (
    activation_scale,
    check_dtype,
    check_float_out,
    check_shape,
    check_weight_rows,
    group_size_of,
)
from qcore_xpu.ops.matmul import matmul, new_result
from qcore_xpu.ops.registration import op

__all__ = ["fp4_gemm", "fp4_gemm_w4a8", "fp4_gemm_w4a16"]

Tensor = torch.Tensor
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_SCALES = (torch.float8_e8m0fnu, torch.uint8, torch.float8_e4m3fn, *_FLOATS)
_CODES = (torch.uint8, torch.float4_e2m1fn_x2)


def _fake_fp4(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    out_dtype: torch.dtype | None,
    bias_: Tensor | None,
) -> Tensor:
    return A.new_empty((*A.shape[:-1], B.shape[1]), dtype=out_dtype or torch.float16)


@op(
    "fp4_gemm(Tensor A, Tensor B, Tensor A_scale, Tensor B_scale, ScalarType? out_dtype, "
    "Tensor? bias_) -> Tensor",
    fake=_fake_fp4,
)
def fp4_gemm(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    out_dtype: torch.dtype | None,
    bias_: Tensor | None,
) -> Tensor:
    """``(A * A_scale) @ (B * B_scale) + bias``; see the module.

    Args:
        A: codes.
        B: codes.
        A_scale: scales of A.
        B_scale: scales of B.
        out_dtype: None for float16.
        bias_: [N].

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "fp4_gemm"
    check_dtype(name, "A", A, *_CODES)
    check_dtype(name, "A_scale", A_scale, *_SCALES)
    A = A.view(torch.uint8)
    K = 2 * A.shape[-1]
    flat = A_scale.reshape(-1, A_scale.shape[-1]).contiguous()
    group = group_size_of(name, "A_scale", flat.shape[1], K, "K")
    check_shape(name, "A_scale", flat, (A.numel() // max(A.shape[-1], 1), flat.shape[1]))
    flat = _floats(flat, group)
    out = new_result(A, B.shape[-1], check_float_out(name, out_dtype or torch.float16))
    rows = A.reshape(-1, K // 2).contiguous()
    return _fp4(name, out, rows, K, B, B_scale, bias_, a_type="e2m1", a_scale=flat, a_group=group)


@op(
    "fp4_gemm_w4a8(Tensor A, Tensor B, Tensor A_scale, Tensor B_scale, ScalarType? out_dtype, "
    "Tensor? bias_) -> Tensor",
    fake=lambda A, B, A_scale, B_scale, out_dtype, bias_: new_result(
        A, B.shape[1], out_dtype or torch.float16
    ),
)
def fp4_gemm_w4a8(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    out_dtype: torch.dtype | None,
    bias_: Tensor | None,
) -> Tensor:
    """``(A * A_scale) @ (B * B_scale) + bias``, A of e4m3; see the module.

    Args:
        A: float8_e4m3fn, or its bytes, [..., K].
        B: codes.
        A_scale: float or e8m0 (uint8 is taken for it): [1], [M, 1] or [M, K / g].
        B_scale: scales of B.
        out_dtype: None for float16.
        bias_: [N].

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "fp4_gemm_w4a8"
    check_dtype(name, "A", A, torch.float8_e4m3fn, torch.uint8)
    check_dtype(name, "A_scale", A_scale, torch.float8_e8m0fnu, torch.uint8, *_FLOATS)
    K = A.shape[-1]
    rows = A.view(torch.float8_e4m3fn).reshape(-1, K)
    scale, group = activation_scale(name, "A_scale", A_scale, rows.shape[0], K)
    out = new_result(A, B.shape[-1], check_float_out(name, out_dtype or torch.float16))
    return _fp4(name, out, rows, K, B, B_scale, bias_, a_scale=scale, a_group=group)


def _fake_w4a16(
    A: Tensor, B: Tensor, B_scale: Tensor, out_dtype: torch.dtype | None, bias_: Tensor | None
) -> Tensor:
    return new_result(A, B.shape[1], out_dtype or A.dtype)


@op(
    "fp4_gemm_w4a16(Tensor A, Tensor B, Tensor B_scale, ScalarType? out_dtype, Tensor? bias_) "
    "-> Tensor",
    fake=_fake_w4a16,
)
def fp4_gemm_w4a16(
    A: Tensor, B: Tensor, B_scale: Tensor, out_dtype: torch.dtype | None, bias_: Tensor | None
) -> Tensor:
    """``A @ (B * B_scale) + bias``, A as it is; see the module. Not an op of vLLM's.

    Args:
        A: float [..., K].
        B: codes.
        B_scale: scales of B.
        out_dtype: None for A's.
        bias_: [N].

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "fp4_gemm_w4a16"
    check_dtype(name, "A", A, *_FLOATS)
    K = A.shape[-1]
    out = new_result(A, B.shape[-1], check_float_out(name, out_dtype or A.dtype))
    return _fp4(name, out, A.reshape(-1, K), K, B, B_scale, bias_)


def _fp4(
    name: str,
    out: Tensor,
    rows: Tensor,
    K: int,
    B: Tensor,
    B_scale: Tensor,
    bias: Tensor | None,
    *,
    a_type: str = "",
    a_scale: Tensor | None = None,
    a_group: int = 0,
) -> Tensor:
    check_dtype(name, "B", B, *_CODES)
    check_dtype(name, "B_scale", B_scale, *_SCALES)
    weight = check_weight_rows(name, B, K // 2).view(torch.uint8)
    N = weight.shape[0]
    groups = B_scale.shape[0] if B_scale.dim() == 2 else 0
    group = group_size_of(name, "B_scale", groups, K, "K")
    check_shape(name, "B_scale", B_scale, (groups, N))
    B_scale = _floats(B_scale, group)
    if bias is not None:
        check_dtype(name, "bias_", bias, *_FLOATS)
        check_shape(name, "bias_", bias, (N,))
        bias = bias.contiguous()
    if out.numel() == 0:
        return out
    matmul(
        out.view(-1, N),
        rows,
        weight,
        a_type=a_type,
        a_scale=a_scale,
        a_group=a_group,
        b_type="e2m1",
        b_scale=B_scale.contiguous().t(),
        b_group=(1, group),
        bias=bias,
    )
    return out


def _floats(scale: Tensor, group: int) -> Tensor:
    of_nvfp4 = scale.dtype == torch.uint8 and group == 16
    return scale.view(torch.float8_e4m3fn) if of_nvfp4 else scale
