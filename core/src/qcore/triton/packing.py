"""The layout of the packed weights: what a step of 64 inputs needs lies together.

Weights are stored by inputs, [K', N']: K' is K rounded up to 64, N' is N rounded up to 16, with
zeros around. Of 4-bit codes, byte j of a step has input j in its low half and input j + 32 in its
high half, so that both halves of a tile of bytes are a tile of codes.
"""

from __future__ import annotations

import torch

__all__ = ["pack_codes", "pack_rows", "pad"]


def pad(matrix: torch.Tensor, rows: int, columns: int, value: float = 0.0) -> torch.Tensor:
    """``matrix``, its sizes rounded up to multiples, contiguous."""
    shape = [-(-size // by) * by for size, by in zip(matrix.shape, (rows, columns), strict=True)]
    # As bytes where torch cannot fill in the dtype.
    if matrix.element_size() == 1:
        wide = matrix.new_zeros(shape, dtype=torch.uint8)
        wide[: matrix.shape[0], : matrix.shape[1]] = matrix.view(torch.uint8)
        return wide.view(matrix.dtype)
    grown = matrix.new_full(shape, value)
    grown[: matrix.shape[0], : matrix.shape[1]] = matrix
    return grown


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 [N, K] to uint8 [K' / 64 * 32, N'] (4 bits) or [K', N'] (8 bits)."""
    wide = pad(codes.t(), 64, 16)
    if bits == 8:
        return wide
    halves = wide.reshape(-1, 2, 32, wide.shape[1])
    return (halves[:, 0] | (halves[:, 1] << 4)).reshape(-1, wide.shape[1])


def pack_rows(values: torch.Tensor) -> torch.Tensor:
    """Scales or zero points [N, G] to [G, N']."""
    return pad(values.t(), 1, 16)
