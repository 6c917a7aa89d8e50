"""Weights in e2m1 and e4m3 for tests: their values by the formats' definitions, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["FloatWeight", "float_values", "random_float_weight"]

Tensor = torch.Tensor
Array = np.ndarray


def float_values(bits: int) -> Tensor:
    """What each code is, float64: of e2m1 (4 bits) or e4m3fn (8 bits)."""
    mantissa_bits, bias = (1, 1) if bits == 4 else (3, 7)
    codes = np.arange(1 << bits)
    sign = np.where(codes >> (bits - 1), -1.0, 1.0)
    exponent = (codes & ((1 << (bits - 1)) - 1)) >> mantissa_bits
    part = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + part) * 2.0 ** (exponent - bias)
    values = sign * np.where(exponent == 0, part * 2.0 ** (1 - bias), normal)
    if bits == 8:
        values[[0x7F, 0xFF]] = np.nan
    return torch.from_numpy(values)


@dataclass
class FloatWeight:
    """Codes [K, N]; scales [G, N], or ones [1, N] beside a scale for each column."""

    codes: Array
    scales: Tensor
    column: Tensor | None
    groups: Array
    bits: int

    @property
    def exact(self) -> Tensor:
        """float64 [K, N]."""
        values = float_values(self.bits)[torch.from_numpy(self.codes).long()]
        scaled = values * self.scales.double()[self.groups]
        return scaled if self.column is None else scaled * self.column.double()


def random_float_weight(
    K: int, N: int, bits: int, group_size: int, dtype: torch.dtype, seed: int = 0
) -> FloatWeight:
    """All codes but NaN.

    Args:
        K: inputs.
        N: outputs.
        bits: 4 or 8.
        group_size: -1 for a float32 scale for each column; 32 for powers of two; else any scales.
        dtype: of scales.
        seed: of all.
    """
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (K, N))
    if bits == 8:
        codes[codes & 0x7F == 0x7F] = 0x08  # the least normal number
    column = None
    groups = np.arange(K) // (K if group_size == -1 else group_size)
    G = int(groups[-1]) + 1
    if group_size == -1:
        column = torch.from_numpy(random.uniform(-0.02, 0.02, N)).float()
        scales = torch.ones(1, N)
    elif group_size == 32:
        scales = torch.from_numpy(2.0 ** random.integers(-9, -5, (G, N)))
    else:
        scales = torch.from_numpy(random.uniform(-0.02, 0.02, (G, N)))
    return FloatWeight(codes, scales.to(dtype), column, groups, bits)
