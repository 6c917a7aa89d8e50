"""Weights in e2m1 and e4m3 for tests: their values by the formats' definitions, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["FloatWeight", "float_values", "random_float_weight", "scale_byte"]

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


def scale_byte(byte: int) -> float:
    """What a byte means that the kernels want for a scale of 16 inputs."""
    return float(2.0 ** (byte // 8 - 10) * (1 + byte % 8 / 8))


@dataclass
class FloatWeight:
    """Codes [K, N]; scales [G, N], ones [1, N] beside a scale for each column, or both."""

    codes: Array
    scales: Tensor
    column: Tensor | None
    groups: Array
    bits: int

    @property
    def size(self) -> int:
        """Of a group."""
        return int((self.groups == 0).sum())

    @property
    def scale_bytes(self) -> Tensor:
        """Scales of 16 inputs as the kernels want them: uint8 [G / 2, N, 2]."""
        known = {scale_byte(byte): byte for byte in range(152)}
        found = np.vectorize(known.__getitem__, otypes=[np.uint8])(self.scales.double().numpy())
        found = np.concatenate([found, np.zeros((len(found) % 2, found.shape[1]), np.uint8)])
        return torch.from_numpy(np.stack([found[::2], found[1::2]], -1))

    @property
    def exact(self) -> Tensor:
        """float64 [K, N]."""
        values = float_values(self.bits)[torch.from_numpy(self.codes).long()]
        scaled = values * self.scales.double()[self.groups]
        return scaled if self.column is None else scaled * self.column.double()


def random_float_weight(
    K: int,
    N: int,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
    seed: int = 0,
    both: bool = False,
) -> FloatWeight:
    """All codes but NaN.

    Args:
        K: inputs.
        N: outputs.
        bits: 4 or 8.
        group_size: -1 for a float32 scale for each column; 16 for that and one of e4m3 for each
            group; 32 for powers of two; else any scales.
        dtype: of scales; those of 16 are float32.
        seed: of all.
        both: whether columns have scales beside those of groups, as blocks of FP8 do.
    """
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (K, N))
    if bits == 8:
        codes[codes & 0x7F == 0x7F] = 0x08  # the least normal number
    column = torch.from_numpy(2.0 ** random.integers(-3, 3, N)).float() if both else None
    groups = np.arange(K) // (K if group_size == -1 else group_size)
    G = int(groups[-1]) + 1
    if group_size == -1:
        column = torch.from_numpy(random.uniform(-0.02, 0.02, N)).float()
        scales = torch.ones(1, N)
    elif group_size == 16:
        column = torch.from_numpy(random.uniform(-0.02, 0.02, N)).float()
        positive = float_values(8)[random.integers(1, 0x7F, (G, N))]
        return FloatWeight(codes, positive.float(), column, groups, bits)
    elif group_size == 32:
        scales = torch.from_numpy(2.0 ** random.integers(-9, -5, (G, N)))
    else:
        scales = torch.from_numpy(random.uniform(-0.02, 0.02, (G, N)))
    return FloatWeight(codes, scales.to(dtype), column, groups, bits)
