"""What the layouts of ``csrc/wna16_pack.cpp`` mean to the kernels that use them."""

from __future__ import annotations

import torch

__all__ = ["by_lanes", "stored_bits"]


def stored_bits(bits: int) -> int:
    """The width to which ``wna16_pack`` brings codes of 2 to 8 bits: 3 to 4, 7 to 8."""
    return {3: 4, 7: 8}.get(bits, bits)


def by_lanes(values: torch.Tensor) -> torch.Tensor:
    """[N, G] to [N / 16, G, 16], with zeros for the outputs that the last lanes have not.

    e4m3 becomes int8, of the same bits.
    """
    N, G = values.shape
    plain = values.view(torch.int8) if values.dtype == torch.float8_e4m3fn else values
    padded = torch.nn.functional.pad(plain, (0, 0, 0, -N % 16))
    return padded.reshape(-1, 16, G).transpose(1, 2).contiguous()
