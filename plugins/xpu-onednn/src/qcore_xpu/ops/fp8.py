"""Products with weights of 8-bit floats. Contracts of vLLM's ops of the same names.

B is [K, N] in any layout. Bytes (uint8) are taken for e4m3fn, since not all that torch does with
tensors knows 8-bit floats. Scales multiply; float, or e8m0 (uint8 is taken for it):

=======  ==========================  ==========================================================
A_scale  [1]                         for all of A
         [M, 1]                      for each row
         [M, K / g]                  for g inputs of each row
B_scale  [1]                         for all of B
         [N], [N, 1] or [1, N]       for each output
         [K / gk, N / gn]            for blocks of gk inputs by gn outputs
=======  ==========================  ==========================================================

With A_scale by groups, B_scale is by blocks: [1, N] and [N, 1] have K in one block then, or N.
"""

from __future__ import annotations

import torch
from qcore.errors import ConfigError

from qcore_xpu.ops.checks import (
    activation_scale,
    check_dtype,
    check_float_out,
    check_shape,
    group_size_of,
)
from qcore_xpu.ops.matmul import matmul, new_result
from qcore_xpu.ops.registration import op

__all__ = ["fp8_gemm", "fp8_gemm_out", "fp8_gemm_w8a16"]

Tensor = torch.Tensor
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_SCALES = (*_FLOATS, torch.float8_e8m0fnu, torch.uint8)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def _fake_fp8(
    A: Tensor,
    B: Tensor,
    out_dtype: torch.dtype | None,
    A_scale_: Tensor | None,
    B_scale_: Tensor | None,
    bias_: Tensor | None,
) -> Tensor:
    return new_result(A, B.shape[1], out_dtype or torch.float16)


@op(
    "fp8_gemm(Tensor A, Tensor B, ScalarType? out_dtype, Tensor? A_scale_, Tensor? B_scale_, "
    "Tensor? bias_) -> Tensor",
    fake=_fake_fp8,
)
def fp8_gemm(
    A: Tensor,
    B: Tensor,
    out_dtype: torch.dtype | None,
    A_scale_: Tensor | None,
    B_scale_: Tensor | None,
    bias_: Tensor | None,
) -> Tensor:
    """``(A * A_scale) @ (B * B_scale) + bias``; see the module.

    Args:
        A: float8_e4m3fn or float8_e5m2 [..., K].
        B: the same dtype [K, N].
        out_dtype: None for float16.
        A_scale_: None for 1.
        B_scale_: None for 1.
        bias_: [N].

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    dtype = check_float_out("fp8_gemm", out_dtype or torch.float16)
    out = new_result(A, B.shape[-1], dtype)
    return _fp8("fp8_gemm", out, A, B, A_scale_, B_scale_, bias_)


@op(
    "fp8_gemm_out(Tensor(a!) out, Tensor A, Tensor B, ScalarType? out_dtype, Tensor? A_scale_, "
    "Tensor? B_scale_, Tensor? bias_) -> Tensor",
    fake=lambda out, A, B, out_dtype, A_scale_, B_scale_, bias_: torch.empty_like(out),
)
def fp8_gemm_out(
    out: Tensor,
    A: Tensor,
    B: Tensor,
    out_dtype: torch.dtype | None,
    A_scale_: Tensor | None,
    B_scale_: Tensor | None,
    bias_: Tensor | None,
) -> Tensor:
    """`fp8_gemm` into ``out``, which is also returned.

    vLLM's schema does not say that the result is ``out``; under torch.compile take `fp8_gemm`.

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "fp8_gemm_out"
    check_shape(name, "out", out, (*A.shape[:-1], B.shape[-1]))
    check_dtype(name, "out", out, *((out_dtype,) if out_dtype is not None else _FLOATS))
    if not out.is_contiguous():
        raise ConfigError(f"{name}: out is not contiguous; it must be")
    return _fp8(name, out, A, B, A_scale_, B_scale_, bias_)


def _fake_w8a16(
    A: Tensor,
    B: Tensor,
    B_scale_: Tensor | None,
    bias_: Tensor | None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return new_result(A, B.shape[1], out_dtype or A.dtype)


@op(
    "fp8_gemm_w8a16.typed(Tensor A, Tensor B, Tensor? B_scale_, Tensor? bias_, "
    "ScalarType? out_dtype) -> Tensor",
    fake=_fake_w8a16,
)
@op(
    "fp8_gemm_w8a16(Tensor A, Tensor B, Tensor? B_scale_, Tensor? bias_) -> Tensor",
    fake=_fake_w8a16,
)
def fp8_gemm_w8a16(
    A: Tensor,
    B: Tensor,
    B_scale_: Tensor | None,
    bias_: Tensor | None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``A @ (B * B_scale) + bias`` with activations as they are; see the module.

    Args:
        A: float [..., K].
        B: float8_e4m3fn or float8_e5m2 [K, N].
        B_scale_: None for 1.
        bias_: [N].
        out_dtype: None for A's.

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "fp8_gemm_w8a16"
    check_dtype(name, "A", A, *_FLOATS)
    out = new_result(A, B.shape[-1], check_float_out(name, out_dtype or A.dtype))
    return _fp8(name, out, A, B, None, B_scale_, bias_)


def _fp8(
    name: str,
    out: Tensor,
    A: Tensor,
    B: Tensor,
    A_scale: Tensor | None,
    B_scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    check_dtype(name, "B", B, *_FP8, torch.uint8)
    B = _floats(B)
    if name != "fp8_gemm_w8a16":
        A = _floats(A)
        check_dtype(name, "A", A, B.dtype)
    K = A.shape[-1]
    if B.dim() != 2 or B.shape[0] != K or K == 0:
        raise ConfigError(f"{name}: B has shape {list(B.shape)}; for this A it must be [{K}, N]")
    N = B.shape[1]
    M = A.numel() // K
    a_group = 0
    if A_scale is not None:
        check_dtype(name, "A_scale_", A_scale, *_SCALES)
        A_scale, a_group = activation_scale(name, "A_scale_", A_scale, M, K)
    b_group = (1, K)
    if B_scale is not None:
        check_dtype(name, "B_scale_", B_scale, *_SCALES)
        B_scale, b_group = _weight_scale(name, B_scale, N, K, blocks=a_group > 0)
    if bias is not None:
        check_dtype(name, "bias_", bias, *_FLOATS)
        check_shape(name, "bias_", bias, (N,))
        bias = bias.contiguous()
    if out.numel() == 0:
        return out
    matmul(
        out.view(-1, N),
        A.reshape(-1, K),
        B.t(),
        a_scale=A_scale,
        a_group=a_group,
        b_scale=B_scale,
        b_group=b_group,
        bias=bias,
    )
    return out


def _floats(t: Tensor) -> Tensor:
    return t.view(torch.float8_e4m3fn) if t.dtype == torch.uint8 else t


def _weight_scale(
    name: str, scale: Tensor, N: int, K: int, *, blocks: bool
) -> tuple[Tensor, tuple[int, int]]:
    """The scale as `matmul` takes it, by outputs, and its group."""
    if scale.numel() == 1:
        return scale.reshape(1), (N, K)
    if scale.numel() == N and not (blocks and scale.dim() == 2) and max(scale.shape) == N:
        return scale.reshape(1, N).contiguous().t(), (1, K)
    if scale.dim() != 2:
        raise ConfigError(
            f"{name}: B_scale_ has shape {list(scale.shape)}; it must be [1], [N]=[{N}] or "
            "[K / gk, N / gn]"
        )
    group_k = group_size_of(name, "B_scale_", scale.shape[0], K, "K")
    group_n = group_size_of(name, "B_scale_", scale.shape[1], N, "N")
    return scale.contiguous().t(), (group_n, group_k)
