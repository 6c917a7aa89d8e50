"""Layouts that FlashInfer's products read: padding, and scales in tiles of 128 x 4."""

from __future__ import annotations

import torch

__all__ = ["pad_to", "round_up", "swizzle_128x4"]


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not below ``size``."""
    return -(-size // multiple) * multiple


def pad_to(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """``tensor``, its dimension ``dim`` grown with zeros to ``size``."""
    missing = size - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size
    grown = tensor.new_zeros(shape)
    grown.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return grown


def swizzle_128x4(scale: torch.Tensor) -> torch.Tensor:
    """Block scales in the order that Blackwell's tensor cores load.

    Rows are padded to 128 and columns to 4 with zeros; of each tile of 128 x 4, byte
    ``(m % 32) * 16 + m // 32 * 4 + k`` holds row ``m`` and column ``k`` (cuBLAS, "1D block scaling
    factors layout"; FlashInfer's ``SfLayout.layout_128x4``).

    Args:
        scale: uint8 [M, S].

    Returns:
        uint8 [round_up(M, 128), round_up(S, 4)], contiguous: the bytes in that order.
    """
    rows, columns = round_up(scale.shape[0], 128), round_up(scale.shape[1], 4)
    padded = pad_to(pad_to(scale, 1, columns), 0, rows)
    tiles = padded.reshape(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.contiguous().reshape(rows, columns)
