"""The ops: a layer in one call each, in ``torch.ops.qcore_triton``.

They take ``x`` [..., K] of any strides and return [..., N]; triton is imported when one first runs.
"""

from __future__ import annotations

import torch

from qcore.kernels.op_library import as_rows, empty_out
from qcore.triton.runtime import OPS, interpreted, on_device_of

__all__ = [
    "FP8_BLOCK_LINEAR",
    "INT8_LINEAR",
    "PACKED_LINEAR",
    "fp8_block_linear",
    "int8_linear",
    "packed_linear",
]

Tensor = torch.Tensor


def _written(out_dtype: torch.dtype) -> torch.dtype:
    """What a kernel writes: the interpreter cuts bfloat16 off where it should round."""
    return torch.float32 if interpreted() else out_dtype


# -- int8 ----------------------------------------------------------------------------------------


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
    """Int8 activations and weights; sums are exact.

    Args:
        x: float [..., K].
        weight: int8 [N, K'], K' a multiple of 128, zeros behind K.
        weight_scale: float32 of 1 or N elements.
        bias: [N].
        input_scale: float32, one element: static; None for a scale for each row.
        input_azp: int32, one element: the zero point that goes with ``input_scale``.
        azp_adj: int32 [N], the sums of the weight's rows; where activations have zero points.
        out_dtype: of the result.
    """
    from qcore.triton.jit.quantize import int8_quant
    from qcore.triton.jit.scaled_mm import int8_mm

    out = empty_out(x, weight.shape[0], _written(out_dtype))
    if out.numel() == 0:
        return out.to(out_dtype)
    rows = as_rows(x)
    with on_device_of(x):
        symmetric = azp_adj is None
        codes, scale, azp = int8_quant(rows, weight.shape[1], input_scale, input_azp, symmetric)
        flat = out.view(-1, weight.shape[0])
        int8_mm(codes, weight, scale, weight_scale, azp, azp_adj, bias, flat)
    return out.to(out_dtype)


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
    return empty_out(x, weight.shape[0], out_dtype)


OPS.define(
    "int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
    "Tensor? input_azp, Tensor? azp_adj, ScalarType out_dtype) -> Tensor",
    int8_linear,
    _int8_fake,
)
INT8_LINEAR = torch.ops.qcore_triton.int8_linear.default


# -- fp8 -----------------------------------------------------------------------------------------


def fp8_block_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    block_n: int,
    block_k: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """E4m3 with a scale for blocks of weights, and one for as many activations of a row.

    Args:
        x: float [..., K].
        weight: float8_e4m3fn [N, K'], or its bytes as uint8; K' a multiple of ``block_k``.
        weight_scale: float32 [ceil(N / block_n), K' / block_k].
        bias: [N].
        block_n: outputs that share a scale.
        block_k: inputs that share a scale, of weights and of activations.
        out_dtype: of the result.
    """
    from qcore.triton.jit.quantize import group_fp8_quant
    from qcore.triton.jit.scaled_mm import fp8_block_mm

    out = empty_out(x, weight.shape[0], _written(out_dtype))
    if out.numel() == 0:
        return out.to(out_dtype)
    rows = as_rows(x)
    with on_device_of(x):
        codes, scale = group_fp8_quant(rows, block_k)
        flat = out.view(-1, weight.shape[0])
        weight = weight.view(codes.dtype)
        fp8_block_mm(codes, weight, scale, weight_scale, bias, flat, (block_n, block_k))
    return out.to(out_dtype)


def _fp8_block_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    block_n: int,
    block_k: int,
    out_dtype: torch.dtype,
) -> Tensor:
    return empty_out(x, weight.shape[0], out_dtype)


OPS.define(
    "fp8_block_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, SymInt block_n, "
    "SymInt block_k, ScalarType out_dtype) -> Tensor",
    fp8_block_linear,
    _fp8_block_fake,
)
FP8_BLOCK_LINEAR = torch.ops.qcore_triton.fp8_block_linear.default


# -- weights that are made floats inside ---------------------------------------------------------


def packed_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    factor: Tensor | None,
    row_factor: Tensor | None,
    bias: Tensor | None,
    kind: str,
    zero: int,
    group: int,
    rounding: str,
    out_features: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Activations of 16 bits and weights in `qcore.triton.packing`'s layout.

    Args:
        x: float [..., K]; float16 or bfloat16 where it is not rounded.
        codes: uint8, packed.
        scales: [G, N'], floats or bytes.
        zeros: uint8 [G, N'], or None.
        factor: float32 [N'], multiplies outputs.
        row_factor: float32, one element or one for each row; multiplies rows. With ``nvfp4`` it is
            the scale of the activations' scales too.
        bias: [N].
        kind: of the codes: ``int4``, ``int8`` (unsigned), ``e2m1``, ``e4m3``.
        zero: the zero of codes without zero points.
        group: inputs that share a scale; 0 for all.
        rounding: of activations: ``nvfp4``, ``mxfp4``, ``mxfp8``, or "".
        out_features: N.
        out_dtype: of the result.
    """
    from qcore.triton.jit.packed_mm import packed_mm
    from qcore.triton.jit.quantize import round_blocks

    out = empty_out(x, out_features, _written(out_dtype))
    if out.numel() == 0:
        return out.to(out_dtype)
    rows = as_rows(x)
    with on_device_of(x):
        if rounding:
            outer = row_factor if rounding == "nvfp4" else None
            rows = round_blocks(rows.contiguous(), rounding, outer)
        packed_mm(
            rows,
            codes,
            scales,
            zeros,
            factor,
            row_factor,
            bias,
            kind,
            zero,
            group,
            out.view(-1, out_features),
            interpreted(),
        )
    return out.to(out_dtype)


def _packed_fake(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    factor: Tensor | None,
    row_factor: Tensor | None,
    bias: Tensor | None,
    kind: str,
    zero: int,
    group: int,
    rounding: str,
    out_features: int,
    out_dtype: torch.dtype,
) -> Tensor:
    return empty_out(x, out_features, out_dtype)


OPS.define(
    "packed_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? factor, "
    "Tensor? row_factor, Tensor? bias, str kind, SymInt zero, SymInt group, str rounding, "
    "SymInt out_features, ScalarType out_dtype) -> Tensor",
    packed_linear,
    _packed_fake,
)
PACKED_LINEAR = torch.ops.qcore_triton.packed_linear.default
