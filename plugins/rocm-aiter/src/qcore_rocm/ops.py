"""A layer in one call, in ``torch.ops.qcore_rocm``: quantize, multiply, scale, add the bias.

They take ``x`` [..., K] of any strides and return [..., N]. They are for AMD's GPUs; with
`qcore_rocm.launching.stand_in` for what stands in for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from qcore.errors import ConfigError

from qcore_rocm.launching import (
    FLOAT_TYPES,
    W4A16,
    BlockScaledMM,
    QuantizeGroups,
    QuantizeRows,
    ScaledMM,
    address,
    launch,
)

__all__ = [
    "FP8_BLOCK_LINEAR",
    "FP8_LINEAR",
    "INT8_LINEAR",
    "W4A16_LINEAR",
    "fp8_block_linear",
    "fp8_linear",
    "fp8_mm",
    "int8_linear",
    "w4a16_linear",
]

Tensor = torch.Tensor

_library = torch.library.Library("qcore_rocm", "FRAGMENT")  # type: ignore[no-untyped-call]
_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_COLUMNS = 64  # of a tile
_FEW_ROWS = 4
_WAVES = 4
_GROUP = 128  # activations that share a scale, with block scales
_MOST_ROWS = 32768  # of csrc/quantize_rows.h


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for key in ("CUDA", "CPU"):  # ROCm's tensors are CUDA's to torch; CPU is for stand-ins
        _library.impl(name, run, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"qcore_rocm::{name}", fake, lib=_library)


# -- checks --------------------------------------------------------------------------------------


def _refuse(op: str, argument: str, given: object, allowed: str) -> ConfigError:
    return ConfigError(f"qcore_rocm.{op}: {argument} is {given}; it must be {allowed}")


def _check(
    op: str,
    argument: str,
    tensor: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
    sizes: tuple[tuple[int, ...], ...],
    like: Tensor,
) -> None:
    """An argument has one of some shapes, lies in one piece, on the device of ``like``."""
    if tensor is None:
        return
    given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise _refuse(op, argument, given, names)
    if tuple(tensor.shape) not in sizes:
        raise _refuse(op, argument, given, " or ".join(str(list(size)) for size in sizes))
    if not tensor.is_contiguous():
        raise _refuse(op, argument, "strided", "contiguous")
    if tensor.device != like.device:
        raise _refuse(op, argument, given, f"on {like.device}")


def _check_rows(op: str, x: Tensor, least: int, most: int, out_dtype: torch.dtype) -> None:
    if x.dtype not in FLOAT_TYPES:
        raise _refuse(op, "x", x.dtype, "float32, float16 or bfloat16")
    if out_dtype not in FLOAT_TYPES:
        raise _refuse(op, "out_dtype", out_dtype, "float32, float16 or bfloat16")
    if x.dim() == 0 or not least <= x.shape[-1] <= most:
        allowed = f"[..., {least}] to [..., {most}], as the weight's inputs are padded"
        raise _refuse(op, "x", list(x.shape), allowed)


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _out(x: Tensor, out_features: int, out_dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


def _blocks(size: int, by: int) -> int:
    return -(-size // by)


_FLOATS = tuple(FLOAT_TYPES)


# -- 8-bit operands ------------------------------------------------------------------------------


def _quantize(
    kind: str,
    rows: Tensor,
    K_padded: int,
    scale: Tensor | None,
    zero: Tensor | None,
    bound: Tensor | None,
    symmetric: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes uint8 [M, K_padded], the scale and the zero point: as given, or [M]."""
    M, K = rows.shape
    codes = rows.new_empty((M, K_padded), dtype=torch.uint8)
    static = scale is not None
    if scale is None:
        scale = rows.new_empty((M,), dtype=torch.float32)
        zero = None if symmetric else rows.new_empty((M,), dtype=torch.int32)
    args = QuantizeRows(
        address(rows),
        address(codes),
        address(scale),
        address(zero),
        address(bound),
        rows.stride(0),
        K,
        K_padded,
        static,
    )
    launch(f"quantize_{kind}_{_NAMES[rows.dtype]}", args, (M, 1), rows.device)
    return codes, scale, zero


def _multiply(
    kind: str,
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    zero: Tensor | None,
    weight_sum: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    (M, K), N = codes.shape, weight.shape[0]
    args = ScaledMM(
        address(codes),
        address(weight),
        address(scale),
        address(weight_scale),
        address(zero),
        address(weight_sum),
        address(bias),
        address(out),
        M,
        N,
        K,
        int(scale.numel() > 1),
        int(weight_scale.numel() > 1),
        int(zero is not None and zero.numel() > 1),
        FLOAT_TYPES[bias.dtype] if bias is not None else 0,
        FLOAT_TYPES[out.dtype],
    )
    tile = 16 if M <= 16 else 64
    grid = (_blocks(N, _COLUMNS), _blocks(M, tile))
    launch(f"scaled_mm_{kind}_{tile}", args, grid, codes.device)


def _check_weight(
    op: str, x: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype, out_dtype: torch.dtype
) -> int:
    """The number of outputs."""
    if weight.dim() != 2 or weight.shape[1] % 16 != 0:
        raise _refuse(op, "weight", list(weight.shape), "[N, K'] with K' a multiple of 16")
    N, K = weight.shape
    _check(op, "weight", weight, (dtype,), ((N, K),), x)
    _check(op, "weight_scale", scale, (torch.float32,), ((N,), (1,)), x)
    _check_rows(op, x, K - 15, K, out_dtype)
    return N


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_azp: Tensor | None,
    azp_adj: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """Int8 weights and activations; sums are exact.

    Args:
        x: float [..., K].
        weight: int8 [N, K'], K' the next multiple of 16, zeros behind K.
        weight_scale: float32 [N] or [1].
        bias: float [N].
        input_scale: float32 [1]; None to compute one for each row.
        input_azp: int32 [1], the static zero point.
        azp_adj: int32 [N], the sum of each row of weights; None for activations without zero point.
        out_dtype: of the result.
    """
    op, one = "int8_linear", ((1,),)
    N = _check_weight(op, x, weight, weight_scale, torch.int8, out_dtype)
    _check(op, "bias", bias, _FLOATS, ((N,),), x)
    _check(op, "input_scale", input_scale, (torch.float32,), one, x)
    _check(op, "input_azp", input_azp, (torch.int32,), one, x)
    _check(op, "azp_adj", azp_adj, (torch.int32,), ((N,),), x)
    if (input_azp is not None) != (input_scale is not None and azp_adj is not None):
        given = "given" if input_azp is not None else "None"
        raise _refuse(op, "input_azp", given, "given with input_scale and azp_adj, and not else")
    out = _out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = _rows(x)
    symmetric = azp_adj is None
    made = _quantize("int8", rows, weight.shape[1], input_scale, input_azp, None, symmetric)
    codes, scale, zero = made
    _multiply("int8", codes, weight, scale, weight_scale, zero, azp_adj, bias, out)
    return out


def _int8_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_azp: Tensor | None,
    azp_adj: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    return _out(x, weight.shape[0], out_dtype)


_define(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
    "Tensor? input_azp, Tensor? azp_adj, ScalarType out_dtype) -> Tensor",
    int8_linear,
    _int8_fake,
)
INT8_LINEAR = torch.ops.qcore_rocm.int8_linear.default


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    upper_bound: Tensor | None,
    per_token: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """E4m3 weights and activations, sums in float32.

    Activations are rounded to e4m3fn. gfx942 multiplies e4m3fnuz, whose values are half as large:
    ``weight_scale`` has a factor of two for the activations there, and another for a weight that
    was e4m3fn (`qcore.numerics.fnuz`).

    Args:
        x: float [..., K].
        weight: the bytes of e4m3 as the GPU has it, uint8 [N, K'], K' the next multiple of 16.
        weight_scale: float32 [N] or [1].
        bias: float [N].
        input_scale: float32 [1], of e4m3fn; None to compute it.
        upper_bound: float32 [1], the largest magnitude that a computed scale covers.
        per_token: a scale for each row, where they are computed.
        out_dtype: of the result.
    """
    op, one = "fp8_linear", ((1,),)
    N = _check_weight(op, x, weight, weight_scale, torch.uint8, out_dtype)
    _check(op, "bias", bias, _FLOATS, ((N,),), x)
    _check(op, "input_scale", input_scale, (torch.float32,), one, x)
    _check(op, "upper_bound", upper_bound, (torch.float32,), one, x)
    out = _out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = _rows(x)
    if input_scale is None and not per_token:
        largest = rows.abs().amax().to(torch.float32).reshape(1)
        if upper_bound is not None:
            largest = torch.minimum(largest, upper_bound)
        input_scale = largest / 448.0
        input_scale = torch.where(input_scale == 0, torch.ones_like(input_scale), input_scale)
    codes, scale, _ = _quantize("fp8", rows, weight.shape[1], input_scale, None, upper_bound)
    _multiply("fp8", codes, weight, scale, weight_scale, None, None, bias, out)
    return out


def fp8_mm(
    a: Tensor,
    weight: Tensor,
    a_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """The product alone: ``(a * a_scale) (weight * weight_scale)^T + bias``.

    Args:
        a: the bytes of e4m3 as the GPU has it, uint8 [M, K'], K' a multiple of 16.
        weight: the same, [N, K'].
        a_scale: float32 [M] or [1].
        weight_scale: float32 [N] or [1].
        bias: float [N].
        out_dtype: of the result.
    """
    op = "fp8_mm"
    _check(op, "a", a, (torch.uint8,), ((a.shape[0], weight.shape[1]),), weight)
    _check(op, "a_scale", a_scale, (torch.float32,), ((a.shape[0],), (1,)), weight)
    _check(op, "weight_scale", weight_scale, (torch.float32,), ((weight.shape[0],), (1,)), a)
    _check(op, "bias", bias, _FLOATS, ((weight.shape[0],),), a)
    out = a.new_empty((a.shape[0], weight.shape[0]), dtype=out_dtype)
    if out.numel():
        _multiply("fp8", a, weight, a_scale, weight_scale, None, None, bias, out)
    return out


def _fp8_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    upper_bound: Tensor | None,
    per_token: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    return _out(x, weight.shape[0], out_dtype)


_define(
    "fp8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
    "Tensor? upper_bound, bool per_token, ScalarType out_dtype) -> Tensor",
    fp8_linear,
    _fp8_fake,
)
FP8_LINEAR = torch.ops.qcore_rocm.fp8_linear.default


def fp8_block_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    block_n: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """E4m3 with a scale for ``block_n`` x 128 weights, and for 128 activations of a row.

    Activations and factors are as for `fp8_linear`.

    Args:
        x: float [..., K].
        weight: the bytes of e4m3 as the GPU has it, uint8 [N, K'], K' the next multiple of 128.
        weight_scale: float32 [ceil(N / block_n), K' / 128].
        bias: float [N].
        block_n: outputs that share a scale.
        out_dtype: of the result.
    """
    op = "fp8_block_linear"
    if weight.dim() != 2 or weight.shape[1] % _GROUP != 0:
        raise _refuse(op, "weight", list(weight.shape), "[N, K'] with K' a multiple of 128")
    if block_n < 1:
        raise _refuse(op, "block_n", block_n, "at least 1")
    N, K = weight.shape
    groups = K // _GROUP
    _check(op, "weight", weight, (torch.uint8,), ((N, K),), x)
    scales = ((_blocks(N, block_n), groups),)
    _check(op, "weight_scale", weight_scale, (torch.float32,), scales, x)
    _check(op, "bias", bias, _FLOATS, ((N,),), x)
    _check_rows(op, x, K - _GROUP + 1, K, out_dtype)
    out = _out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = _rows(x)
    M = rows.shape[0]
    codes = rows.new_empty((M, K), dtype=torch.uint8)
    scale = rows.new_empty((M, groups), dtype=torch.float32)
    made = QuantizeGroups(
        address(rows),
        address(codes),
        address(scale),
        rows.stride(0),
        M,
        rows.shape[1],
        groups,
    )
    grid = (_blocks(groups, _WAVES), min(M, _MOST_ROWS))
    launch(f"quantize_groups_{_NAMES[rows.dtype]}", made, grid, rows.device)
    args = BlockScaledMM(
        address(codes),
        address(weight),
        address(scale),
        address(weight_scale),
        address(bias),
        address(out),
        M,
        N,
        K,
        block_n,
        FLOAT_TYPES[bias.dtype] if bias is not None else 0,
        FLOAT_TYPES[out_dtype],
    )
    tile = 16 if M <= 16 else 64
    grid = (_blocks(N, _COLUMNS), _blocks(M, tile))
    launch(f"block_scaled_mm_fp8_{tile}", args, grid, rows.device)
    return out


def _fp8_block_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    block_n: int,
    out_dtype: torch.dtype,
) -> Tensor:
    return _out(x, weight.shape[0], out_dtype)


_define(
    "fp8_block_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, SymInt block_n, "
    "ScalarType out_dtype) -> Tensor",
    fp8_block_linear,
    _fp8_block_fake,
)
FP8_BLOCK_LINEAR = torch.ops.qcore_rocm.fp8_block_linear.default


# -- 4-bit weights -------------------------------------------------------------------------------


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
        raise _refuse(op, "x", x.dtype, "float16 or bfloat16")
    if group < 8 or group % 8 != 0:
        raise _refuse(op, "group", group, "a multiple of 8")
    if codes.dim() != 2:
        raise _refuse(op, "codes", list(codes.shape), "[N, K' / 8]")
    N, K = codes.shape[0], codes.shape[1] * 8
    shape = (N, _blocks(K, group))
    _check(op, "codes", codes, (torch.int32,), ((N, K // 8),), x)
    _check(op, "scale", scale, (torch.float32,), (shape,), x)
    _check(op, "zeros", zeros, (torch.uint8,), (shape,), x)
    _check(op, "bias", bias, _FLOATS, ((N,),), x)
    _check_rows(op, x, K - 7, K, out_dtype)
    out = _out(x, N, out_dtype)
    if out.numel() == 0:
        return out
    rows = _rows(x)
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
    name = f"w4a16_{_NAMES[rows.dtype]}"
    if M <= _FEW_ROWS:
        launch(f"{name}_few", args, (_blocks(N, _WAVES), 1), rows.device)
    else:
        tile = 16 if M <= 16 else 64
        launch(f"{name}_{tile}", args, (_blocks(N, _COLUMNS), _blocks(M, tile)), rows.device)
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
    return _out(x, codes.shape[0], out_dtype)


_define(
    "w4a16_linear(Tensor x, Tensor codes, Tensor scale, Tensor? zeros, Tensor? bias, SymInt zero, "
    "SymInt group, ScalarType out_dtype) -> Tensor",
    w4a16_linear,
    _w4a16_fake,
)
W4A16_LINEAR = torch.ops.qcore_rocm.w4a16_linear.default
