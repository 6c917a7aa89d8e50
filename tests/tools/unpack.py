"""GPTQ's and AWQ's layouts in plain loops over shifts, for tools that cannot dequantize in float32.

``w = (code - zero) * scale``, codes and zeros lowest bits first (AWQ: in an order of its own).
"""

from __future__ import annotations

import torch

AWQ = (0, 4, 1, 5, 2, 6, 3, 7)


def codes(words: torch.Tensor, bits: int, dim: int, order: tuple[int, ...] = ()) -> torch.Tensor:
    """Codes of 2, 4 or 8 bits from int32 words packed along ``dim``."""
    count = 32 // bits
    parts = [(words >> (bits * (order or range(count))[i])) & (2**bits - 1) for i in range(count)]
    stacked = torch.stack(parts, dim=dim + 1)
    shape = list(words.shape)
    shape[dim] *= count
    return stacked.reshape(shape)


def gptq(t: dict[str, torch.Tensor], name: str, bits: int, one: int) -> torch.Tensor:
    """[N, K]; ``one``: what the stored zero points lack."""
    weight = codes(t[f"{name}.qweight"], bits, 0)
    zeros = (codes(t[f"{name}.qzeros"], bits, 1) + one) & (2**bits - 1)
    scale = t[f"{name}.scales"].float()
    K, groups = weight.shape[0], scale.shape[0]
    group = t.get(f"{name}.g_idx", torch.arange(K) // (K // groups)).long()
    return ((weight - zeros[group]).float() * scale[group]).t()


def awq(t: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """[N, K]."""
    weight = codes(t[f"{name}.qweight"], 4, 1, AWQ)
    zeros = codes(t[f"{name}.qzeros"], 4, 1, AWQ)
    scale = t[f"{name}.scales"].float()
    group = torch.arange(weight.shape[0]) // (weight.shape[0] // scale.shape[0])
    return ((weight - zeros[group]).float() * scale[group]).t()
