"""The orders of weights and of e8m0 scales that AITER's products read.

The matrix [N, K] of bytes is cut into tiles of 16 outputs by 32 inputs, which follow each other by
inputs first. In a tile come the first 16 inputs of each of its outputs, then the second 16: what
the lanes of a wave load side by side. AITER calls it layout (16, 16). Since only the 16 inputs of a
half lie together, it is hipBLASLt's order ``COL16_4R16`` too, whose tiles have 64 inputs.

Scales [rows, groups of 32] are cut into tiles of 32 rows by 8 groups. In a tile each lane of a wave
has the four that its two matrix instructions need side by side: lane ``l`` those of the rows
``l % 16`` and ``16 + l % 16`` and of the groups ``l // 16`` and ``4 + l // 16``, rows first.
"""

from __future__ import annotations

import torch

__all__ = ["shuffle_scale", "shuffle_weight"]


def shuffle_weight(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [N, K], one byte an element, N a multiple of 16 and K of 32, in AITER's order."""
    N, K = weight.shape
    tiles = weight.view(torch.uint8).reshape(N // 16, 16, K // 32, 2, 16)
    # (tile of outputs, output, tile of inputs, half, input) -> output after half
    return tiles.permute(0, 2, 3, 1, 4).reshape(N, K).view(weight.dtype)


def shuffle_scale(scale: torch.Tensor) -> torch.Tensor:
    """e8m0 bytes [rows, K / 32] in AITER's order: rows padded to 256, columns to 8, with zeros."""
    rows, columns = scale.shape
    padded = scale.new_zeros((-(-rows // 256) * 256, -(-columns // 8) * 8))
    padded[:rows, :columns] = scale
    R, C = padded.shape
    tiles = padded.reshape(R // 32, 2, 16, C // 8, 2, 4)
    # (tile of rows, half, row, tile of groups, half, group) -> group, row, half of groups, of rows
    return tiles.permute(0, 3, 5, 2, 4, 1).reshape(R, C)
