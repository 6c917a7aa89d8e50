"""The order of weights that AITER's pre-shuffled products read.

The matrix [N, K] of bytes is cut into tiles of 16 outputs by 32 inputs, which follow each other by
inputs first. In a tile come the first 16 inputs of each of its outputs, then the second 16: what
the lanes of a wave load side by side. AITER calls it layout (16, 16).
"""

from __future__ import annotations

import torch

__all__ = ["shuffle_weight"]


def shuffle_weight(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [N, K], one byte an element, N a multiple of 16 and K of 32, in AITER's order."""
    N, K = weight.shape
    tiles = weight.view(torch.uint8).reshape(N // 16, 16, K // 32, 2, 16)
    # (tile of outputs, output, tile of inputs, half, input) -> output after half
    return tiles.permute(0, 2, 3, 1, 4).reshape(N, K).view(weight.dtype)
