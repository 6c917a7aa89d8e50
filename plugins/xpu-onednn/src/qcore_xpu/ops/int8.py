"""`int8_gemm`: products of bytes with full range. Not an op of vLLM's."""

from __future__ import annotations

import torch
from qcore.errors import ConfigError

from qcore_xpu.ops.checks import check_dtype, check_float_out, check_shape
from qcore_xpu.ops.matmul import matmul, new_result
from qcore_xpu.ops.registration import op

__all__ = ["int8_gemm"]

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
