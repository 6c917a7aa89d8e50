"""`int8_gemm` and `int8_gemm_w8a16`: products with bytes of full range. Not ops of vLLM's."""

from __future__ import annotations

import torch
from qcore.errors import ConfigError

from qcore_xpu.ops.checks import check_dtype, check_float_out, check_shape
from qcore_xpu.ops.matmul import matmul, new_result
from qcore_xpu.ops.registration import op

__all__ = ["int8_gemm", "int8_gemm_w8a16"]

Tensor = torch.Tensor
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _fake(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    A_zp: Tensor | None,
    B_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    return new_result(A, B.shape[1], out_dtype)


@op(
    "int8_gemm(Tensor A, Tensor B, Tensor A_scale, Tensor? A_zp, Tensor B_scale, "
    "ScalarType out_dtype, Tensor? bias) -> Tensor",
    fake=_fake,
)
def int8_gemm(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    A_zp: Tensor | None,
    B_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    """``((A - A_zp) * A_scale) @ (B * B_scale) + bias``.

    Args:
        A: int8 [..., K].
        B: int8 [K, N], in any layout.
        A_scale: float32 [1], or for each row [M, 1].
        A_zp: int32 [1] or [M, 1]; None for zero.
        B_scale: float [1], or for each output [N].
        out_dtype: float16, bfloat16 or float32.
        bias: [N].

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "int8_gemm"
    check_dtype(name, "A", A, torch.int8)
    check_dtype(name, "B", B, torch.int8)
    K = A.shape[-1]
    if B.dim() != 2 or B.shape[0] != K or K == 0:
        raise ConfigError(f"{name}: B has shape {list(B.shape)}; for this A it must be [{K}, N]")
    N, M = B.shape[1], A.numel() // K
    check_dtype(name, "A_scale", A_scale, *_FLOATS)
    check_shape(name, "A_scale", A_scale, (), (1,), (M,), (M, 1))
    check_dtype(name, "B_scale", B_scale, *_FLOATS)
    check_shape(name, "B_scale", B_scale, (), (1,), (N,), (N, 1), (1, N))
    if A_zp is not None:
        check_dtype(name, "A_zp", A_zp, torch.int32)
        check_shape(name, "A_zp", A_zp, (), (1,), (M,), (M, 1))
        A_zp = A_zp.reshape(1) if A_zp.numel() == 1 else A_zp.reshape(M, 1)
    if bias is not None:
        check_dtype(name, "bias", bias, *_FLOATS)
        check_shape(name, "bias", bias, (N,))
        bias = bias.contiguous()
    out = new_result(A, N, check_float_out(name, out_dtype))
    if out.numel() == 0:
        return out
    whole = A_scale.numel() == 1
    tensor = B_scale.numel() == 1
    matmul(
        out.view(-1, N),
        A.reshape(-1, K),
        B.t(),
        a_scale=A_scale.reshape(1) if whole else A_scale.reshape(M, 1).contiguous(),
        a_group=-1 if whole else 0,
        a_zero=A_zp,
        b_scale=B_scale.reshape(1) if tensor else B_scale.reshape(1, N).contiguous().t(),
        b_group=(N, K) if tensor else (1, K),
        bias=bias,
    )
    return out


def _fake_w8a16(
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    B_scale: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return new_result(A, B.shape[1], out_dtype or A.dtype)


@op(
    "int8_gemm_w8a16(Tensor A, Tensor B, Tensor? bias, Tensor B_scale, int group_size, "
    "Tensor? g_idx, ScalarType? out_dtype) -> Tensor",
    fake=_fake_w8a16,
)
def int8_gemm_w8a16(
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    B_scale: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """``A @ (B * B_scale) + bias``, A as it is, scales by groups.

    Args:
        A: float [..., K].
        B: int8 [K, N], in any layout.
        bias: [N].
        B_scale: float [ceil(K / group_size), N].
        group_size: inputs that share a scale; -1 for all.
        g_idx: a permutation of the inputs: A's column ``g_idx[k]`` is multiplied with row k.
        out_dtype: None for A's.

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "int8_gemm_w8a16"
    check_dtype(name, "A", A, *_FLOATS)
    check_dtype(name, "B", B, torch.int8)
    K = A.shape[-1]
    if B.dim() != 2 or B.shape[0] != K or K == 0:
        raise ConfigError(f"{name}: B has shape {list(B.shape)}; for this A it must be [{K}, N]")
    N = B.shape[1]
    if group_size != -1 and group_size < 1:
        raise ConfigError(f"{name}: group_size is {group_size}; it must be -1 or at least 1")
    group = K if group_size == -1 else min(group_size, K)
    check_dtype(name, "B_scale", B_scale, *_FLOATS)
    check_shape(name, "B_scale", B_scale, (-(-K // group), N))
    if g_idx is not None:
        check_dtype(name, "g_idx", g_idx, torch.int32, torch.int64)
        check_shape(name, "g_idx", g_idx, (K,))
        A = A.index_select(-1, g_idx)
    if bias is not None:
        check_dtype(name, "bias", bias, *_FLOATS)
        check_shape(name, "bias", bias, (N,))
        bias = bias.contiguous()
    out = new_result(A, N, check_float_out(name, out_dtype or A.dtype))
    if out.numel() == 0:
        return out
    matmul(
        out.view(-1, N),
        A.reshape(-1, K),
        B.t(),
        b_scale=B_scale.contiguous().t(),
        b_group=(1, group),
        bias=bias,
    )
    return out
