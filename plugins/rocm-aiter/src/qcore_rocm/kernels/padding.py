"""Round a weight's inputs up."""

from __future__ import annotations

import torch

__all__ = ["pad_inputs"]


def pad_inputs(weight: torch.Tensor, multiple: int) -> torch.Tensor:
    """``weight`` [N, K] of bytes, K a multiple, zeros behind, contiguous."""
    N, K = weight.shape
    wide = weight.new_zeros((N, -(-K // multiple) * multiple))
    wide[:, :K] = weight
    return wide
