"""What each op returns, without running it: for ``torch.compile`` and meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register"]

Tensor = torch.Tensor


def _wna16_pack(
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    weight_g_idx: Tensor | None,
    bits: int,
    zero_bias: int,
    group_size: int,
    in_features: int,
) -> tuple[Tensor, ...]:
    # How many words the groups fill depends on the values of g_idx.
    context = torch.library.get_ctx()
    words, slots, zeros, chunks = (context.new_dynamic_size() for _ in range(4))
    blocks = -(-weight_packed.shape[0] // 16)
    groups = weight_scale.shape[1]
    return (
        weight_packed.new_empty((blocks, words, 16), dtype=torch.int32),
        weight_scale.new_empty((blocks, groups, 16)),
        weight_packed.new_empty((zeros, groups, 16), dtype=torch.uint8),
        weight_packed.new_empty((slots,), dtype=torch.int32),
        weight_packed.new_empty((2, chunks), dtype=torch.int32),
    )


def _wna16_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    perm: Tensor | None,
    chunks: Tensor,
    bias: Tensor | None,
    bits: int,
    in_features: int,
    out_features: int,
    out_dtype: torch.dtype | None = None,
    offset: Tensor | None = None,
    super_scale: Tensor | None = None,
    super_offset: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype or x.dtype)


def _wna16_int8_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    perm: Tensor | None,
    chunks: Tensor,
    bias: Tensor | None,
    bits: int,
    in_features: int,
    out_features: int,
    per_row: bool = False,
    out_dtype: torch.dtype | None = None,
    offset: Tensor | None = None,
    super_scale: Tensor | None = None,
    super_offset: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype or x.dtype)


def _wfp_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    perm: Tensor | None,
    chunks: Tensor,
    bias: Tensor | None,
    codes: str,
    in_features: int,
    out_features: int,
    out_dtype: torch.dtype | None = None,
    weight_scale: Tensor | None = None,
    offset: Tensor | None = None,
    table: Tensor | None = None,
    activations: str = "",
    group: int = 0,
    input_scale: Tensor | None = None,
    input_bound: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype or x.dtype)


def _dynamic_quant(x: Tensor, symmetric: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    column = (*x.shape[:-1], 1)
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(column, dtype=torch.float32),
        x.new_empty(column, dtype=torch.int32),
    )


def _static_quant(x: Tensor, input_scale: Tensor, azp: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


def _int8_pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    N, K = weight.shape
    packed = weight.new_empty((-(-N // 16), -(-K // 4), 16, 4), dtype=torch.uint8)
    return packed, weight.new_empty((N,), dtype=torch.int32)


def _int8_scaled_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    col_sums: Tensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    azp: Tensor | None = None,
    symmetric: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], col_sums.shape[0]), dtype=out_dtype or x.dtype)


def _experts(x: Tensor, *args: object) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _one_query_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return query.new_empty(query.shape)


def _nothing(*args: object, **kwargs: object) -> None:
    """Of an op that writes into its argument."""


def register() -> None:
    """Register them; the ops must be there."""
    fakes: dict[str, Callable[..., Any]] = {
        "wna16_pack": _wna16_pack,
        "wna16_linear": _wna16_linear,
        "wna16_linear_out": _nothing,
        "wna16_int8_linear": _wna16_int8_linear,
        "wna16_int8_linear_out": _nothing,
        "wfp_linear": _wfp_linear,
        "wfp_linear_out": _nothing,
        "dynamic_scaled_int8_quant": _dynamic_quant,
        "static_scaled_int8_quant": _static_quant,
        "experts": _experts,
        "one_query_attention": _one_query_attention,
        "int8_pack": _int8_pack,
        "int8_scaled_linear": _int8_scaled_linear,
        "int8_scaled_linear_out": _nothing,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"qcore_cpu::{name}", fake)
