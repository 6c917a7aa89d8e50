"""Layers with 4-bit weights and activations of 16 bits."""

from __future__ import annotations

import torch
from qcore.kernels.op_library import as_rows, empty_out

from qcore_rocm.launching import (
    FLOAT_TYPES,
    W4A16,
    address,
    launch,
)
from qcore_rocm.ops.support import (
    FLOAT_NAMES,
    FLOATS,
    OPS,
    TILE_COLUMNS,
    Tensor,
    blocks,
    check,
    check_rows,
    refusal,
)

__all__ = ["W4A16_LINEAR", "w4a16_linear"]

_WAVES = 4
_FEW_ROWS = 4


def w4a16_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    zero: int,
    group: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Weights of 4 bits, ``(code - zero) * scale``, activations of 16 bits.

    Args:
        x: float16 or bfloat16 [..., K].
        codes: int32 [N, K' / 8], the first code in the lowest bits; K' the next multiple of 8.
        scale: float32 [N, G].
        zeros: uint8 [N, G], or None.
        bias: float [N].
        zero: the zero of codes without zero points.
        group: inputs that share a scale, a multiple of 8.
        out_dtype: of the result.
    """
    op = "w4a16_linear"
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise refusal(op, "x", x.dtype, "float16 or bfloat16")
    if group < 8 or group % 8 != 0:
        raise refusal(op, "group", group, "a multiple of 8")
    if codes.dim() != 2:
        raise refusal(op, "codes", list(codes.shape), "[N, K' / 8]")
    N, K = codes.shape[0], codes.shape[1] * 8
    shape = (N, blocks(K, group))
    check(op, "codes", codes, (torch.int32,), ((N, K // 8),), x)
    check(op, "scale", scale, (torch.float32,), (shape,), x)
    check(op, "zeros", zeros, (torch.uint8,), (shape,), x)
    check(op, "bias", bias, FLOATS, ((N,),), x)
    check_rows(op, x, K - 7, K, out_dtype)
    out = empty_out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = as_rows(x)
    if rows.shape[1] != K or rows.stride(0) % 8 != 0 or rows.data_ptr() % 16 != 0:
        rows = torch.nn.functional.pad(rows, (0, K - rows.shape[1])).clone()
    M = rows.shape[0]
    args = W4A16(
        address(rows),
        address(codes),
        address(scale),
        address(zeros),
        address(bias),
        address(out),
        rows.stride(0),
        M,
        N,
        K,
        group,
        shape[1],
        zero,
        FLOAT_TYPES[bias.dtype] if bias is not None else 0,
        FLOAT_TYPES[out_dtype],
    )
    name = f"w4a16_{FLOAT_NAMES[rows.dtype]}"
    if M <= _FEW_ROWS:
        launch(f"{name}_few", args, (blocks(N, _WAVES), 1), rows.device)
    else:
        tile = 16 if M <= 16 else 64
        launch(f"{name}_{tile}", args, (blocks(N, TILE_COLUMNS), blocks(M, tile)), rows.device)
    return out


def _w4a16_fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    zero: int,
    group: int,
    out_dtype: torch.dtype,
) -> Tensor:
    return empty_out(x, codes.shape[0], out_dtype)


OPS.define(
    "w4a16_linear(Tensor x, Tensor codes, Tensor scale, Tensor? zeros, Tensor? bias, SymInt zero, "
    "SymInt group, ScalarType out_dtype) -> Tensor",
    w4a16_linear,
    _w4a16_fake,
)
W4A16_LINEAR = torch.ops.qcore_rocm.w4a16_linear.default
