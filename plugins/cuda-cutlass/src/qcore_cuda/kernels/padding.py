"""Zeros around a weight, where a kernel wants sizes in multiples."""

from __future__ import annotations

import torch

__all__ = ["MAX_INT32_K", "pad_to"]

MAX_INT32_K = 65536
"""Up to here a sum of products of 8-bit codes, zero points subtracted, fits in 32 bits."""


def pad_to(tensor: torch.Tensor, dim: int, multiple: int, value: float = 0.0) -> torch.Tensor:
    """``tensor``, its dimension ``dim`` grown to a multiple; the same tensor where it is one."""
    missing = -tensor.shape[dim] % multiple
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] += missing
    grown = tensor.new_full(shape, value) if value else tensor.new_zeros(shape)
    grown.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return grown
