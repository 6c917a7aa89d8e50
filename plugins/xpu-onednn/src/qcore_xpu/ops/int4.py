"""Products with integer weights of 4 bits. Contracts of vLLM's ops of the same names.

Of all, with K inputs and N outputs:

==========  ================================  ====================================================
B           int32 [K / 8, N]                  codes packed along K, lowest bits first; the
                                              transposed view of a contiguous [N, K / 8]
B_scale     float [K / group_size, N]
B_zp        int8 [1]                          one zero point for all weights (8 for uint4b8)
            int32 [K / group_size, N / 8]     or for each group and output, packed along N
group_size  int                               -1 for one group of all K
g_idx       int [K]                           the order in which inputs meet the rows of B: A's
                                              column ``g_idx[k]`` is multiplied with row k
==========  ================================  ====================================================
"""

from __future__ import annotations

import torch
from qcore.errors import ConfigError

from qcore_xpu.ops.checks import check_dtype, check_float_out, check_shape, check_weight_rows
from qcore_xpu.ops.matmul import matmul, new_result
from qcore_xpu.ops.registration import op

__all__ = ["int4_gemm_w4a8", "int4_gemm_w4a16"]

Tensor = torch.Tensor
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _fake_w4a16(
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    B_scale: Tensor,
    B_zp: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return new_result(A, B.shape[1], out_dtype or A.dtype)


@op(
    "int4_gemm_w4a16.typed(Tensor A, Tensor B, Tensor? bias, Tensor B_scale, Tensor B_zp, "
    "int group_size, Tensor? g_idx, ScalarType? out_dtype) -> Tensor",
    fake=_fake_w4a16,
)
@op(
    "int4_gemm_w4a16(Tensor A, Tensor B, Tensor? bias, Tensor B_scale, Tensor B_zp, "
    "int group_size, Tensor? g_idx) -> Tensor",
    fake=_fake_w4a16,
)
def int4_gemm_w4a16(
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    B_scale: Tensor,
    B_zp: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Activations as they are; see the module.

    Args:
        A: float [..., K].
        B: codes.
        bias: [N].
        B_scale: scales.
        B_zp: zero points.
        group_size: inputs that share a scale.
        g_idx: a permutation of the inputs.
        out_dtype: None for A's.

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "int4_gemm_w4a16"
    check_dtype(name, "A", A, *_FLOATS)
    out = new_result(A, B.shape[-1], check_float_out(name, out_dtype or A.dtype))
    return _int4(name, A, out, B, B_scale, B_zp, group_size, g_idx, bias)


def _fake_w4a8(
    A_: Tensor,
    A_scale: Tensor,
    A_zp: Tensor | None,
    B: Tensor,
    B_scale: Tensor,
    B_zp: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype = torch.float16,
) -> Tensor:
    return new_result(A_, B.shape[1], out_dtype)


@op(
    "int4_gemm_w4a8.typed(Tensor A_, Tensor A_scale, Tensor? A_zp, Tensor B, Tensor B_scale, "
    "Tensor B_zp, int group_size, Tensor? g_idx, Tensor? bias, ScalarType out_dtype) -> Tensor",
    fake=_fake_w4a8,
)
@op(
    "int4_gemm_w4a8(Tensor A_, Tensor A_scale, Tensor A_zp, Tensor B, Tensor B_scale, Tensor B_zp, "
    "int group_size, Tensor? g_idx, Tensor? bias) -> Tensor",
    fake=_fake_w4a8,
)
def int4_gemm_w4a8(
    A_: Tensor,
    A_scale: Tensor,
    A_zp: Tensor | None,
    B: Tensor,
    B_scale: Tensor,
    B_zp: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Activations of 8 bits, quantized by the caller; see the module.

    Args:
        A_: int8 or uint8 [..., K].
        A_scale: float32 [1], or for each row [M, 1].
        A_zp: int32 [1] or [M, 1]; in the overload ``typed`` None for zero.
        B: codes.
        B_scale: scales.
        B_zp: zero points.
        group_size: inputs that share a scale.
        g_idx: a permutation of the inputs.
        bias: [N].
        out_dtype: float16 but in the overload ``typed``.

    Returns:
        [..., N].

    Raises:
        ConfigError: an argument does not fit; the message names it.
    """
    name = "int4_gemm_w4a8"
    check_dtype(name, "A_", A_, torch.int8, torch.uint8)
    check_dtype(name, "A_scale", A_scale, *_FLOATS)
    M = A_.numel() // max(A_.shape[-1], 1)
    check_shape(name, "A_scale", A_scale, (), (1,), (M,), (M, 1))
    if A_zp is not None:
        check_dtype(name, "A_zp", A_zp, torch.int32)
        check_shape(name, "A_zp", A_zp, (), (1,), (M,), (M, 1))
    out = new_result(A_, B.shape[-1], check_float_out(name, out_dtype))
    return _int4(name, A_, out, B, B_scale, B_zp, group_size, g_idx, bias, A_scale, A_zp)


def _int4(
    name: str,
    A: Tensor,
    out: Tensor,
    B: Tensor,
    B_scale: Tensor,
    B_zp: Tensor,
    group_size: int,
    g_idx: Tensor | None,
    bias: Tensor | None,
    A_scale: Tensor | None = None,
    A_zp: Tensor | None = None,
) -> Tensor:
    K = A.shape[-1]
    check_dtype(name, "B", B, torch.int32)
    if K % 8 or K == 0:
        raise ConfigError(f"{name}: A has K={K}; it must be a multiple of 8")
    weight = check_weight_rows(name, B, K // 8)
    N = weight.shape[0]
    if group_size != -1 and group_size < 1:
        raise ConfigError(f"{name}: group_size is {group_size}; it must be -1 or at least 1")
    group = K if group_size == -1 else min(group_size, K)
    G = -(-K // group)
    check_dtype(name, "B_scale", B_scale, *_FLOATS)
    check_shape(name, "B_scale", B_scale, (G, N))
    if B_zp.numel() == 1 and B_zp.dtype == torch.int8:
        B_zp = B_zp.reshape(1)
    else:
        check_dtype(name, "B_zp", B_zp, torch.int32)
        if N % 8:
            raise ConfigError(f"{name}: B_zp is packed, which needs N={N} to be a multiple of 8")
        check_shape(name, "B_zp", B_zp, (G, N // 8))
        B_zp = B_zp.contiguous()
    if g_idx is not None:
        check_dtype(name, "g_idx", g_idx, torch.int32, torch.int64)
        check_shape(name, "g_idx", g_idx, (K,))
        A = A.index_select(-1, g_idx)
    if bias is not None:
        check_dtype(name, "bias", bias, *_FLOATS)
        check_shape(name, "bias", bias, (N,))
        bias = bias.contiguous()
    if out.numel() == 0:
        return out
    matmul(
        out.view(-1, N),
        A.reshape(-1, K),
        weight,
        a_scale=None if A_scale is None else _by_row(A_scale),
        a_group=-1 if A_scale is not None and A_scale.numel() == 1 else 0,
        a_zero=None if A_zp is None else _by_row(A_zp),
        b_type="u4",
        b_scale=B_scale.contiguous().t(),
        b_group=(1, group),
        b_zero=B_zp,
        bias=bias,
    )
    return out


def _by_row(t: Tensor) -> Tensor:
    return t.reshape(1) if t.numel() == 1 else t.reshape(-1, 1).contiguous()
