"""A layer in one call: quantize the input, multiply, scale, add the bias.

What the three ops have in common: ``x`` is [..., K], the weight [N', K'] by rows, K' being K
rounded up to a multiple of 16 and N' at least N, with zeros around the layer's own numbers, and the
result [..., N] of ``out_dtype``, float16 or bfloat16. On SM90 products of many rows are fastest
where N' is a multiple of 8.
"""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake, fake_nothing

__all__ = ["fp8_block_linear", "fp8_linear", "int8_linear"]

Tensor = torch.Tensor


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_azp: Tensor | None,
    azp_adj: Tensor | None,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """Int8 activations and weights, sums exact.

    Args:
        x: float32, float16 or bfloat16 [..., K].
        weight: int8 [N', K'].
        weight_scale: float32 of 1 or N' elements.
        bias: [N] of ``out_dtype``.
        input_scale: float32, one element: static; None for a scale for each row.
        input_azp: int32, one element: the zero point that goes with ``input_scale``.
        azp_adj: int32 [N'], the sums of the weight's rows; where activations have zero points.
        out_features: N.
        out_dtype: of the result; None for that of ``x``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    library.load()
    return torch.ops.qcore_cuda.int8_linear(  # type: ignore[no-any-return]
        x,
        weight,
        weight_scale,
        bias,
        input_scale,
        input_azp,
        azp_adj,
        out_features,
        out_dtype,
    )


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    scale_ub: Tensor | None,
    per_token: bool,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """E4m3 activations and weights.

    Args:
        x: float32, float16 or bfloat16 [..., K]; or float8_e4m3fn, and its scale is ``input_scale``
            of 1 or M elements.
        weight: float8_e4m3fn [N', K'], or its bytes as uint8.
        weight_scale: float32 of 1 or N' elements.
        bias: [N] of ``out_dtype``.
        input_scale: float32, one element: static; None to compute it.
        scale_ub: float32, one element: the largest magnitude that a computed row's scale covers.
        per_token: a scale for each row where it is computed, else one for all.
        out_features: N.
        out_dtype: of the result; None for that of ``x``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    library.load()
    return torch.ops.qcore_cuda.fp8_linear(  # type: ignore[no-any-return]
        x,
        weight,
        weight_scale,
        bias,
        input_scale,
        scale_ub,
        per_token,
        out_features,
        out_dtype,
    )


def fp8_block_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """E4m3 with a scale for 128 x 128 weights, and one for each 128 activations of a row.

    Args:
        x: float32, float16 or bfloat16 [..., K].
        weight: float8_e4m3fn [N', K'], or its bytes as uint8.
        weight_scale: float32 [ceil(N' / 128), ceil(K / 128)], or with columns behind, to a multiple
            of 4, that are never looked at: SM90's copy engine wants rows in multiples of 16 bytes;
            others are copied at each call.
        bias: [N] of ``out_dtype``.
        out_features: N.
        out_dtype: of the result; None for that of ``x``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    library.load()
    return torch.ops.qcore_cuda.fp8_block_linear(  # type: ignore[no-any-return]
        x, weight, weight_scale, bias, out_features, out_dtype
    )


def _out(x: Tensor, out_features: int, out_dtype: torch.dtype | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


@fake("int8_linear")
def _int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_azp: Tensor | None,
    azp_adj: Tensor | None,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return _out(x, out_features, out_dtype)


@fake("fp8_linear")
def _fp8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    scale_ub: Tensor | None,
    per_token: bool,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return _out(x, out_features, out_dtype)


@fake("fp8_block_linear")
def _fp8_block_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_features: int,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return _out(x, out_features, out_dtype)


fake_nothing("int8_linear.out", "fp8_linear.out", "fp8_block_linear.out")
