"""The layers that `cpu_linear.py` and its peers measure: one seed, the same numbers everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "Int8Layer",
    "Layer",
    "activations",
    "make",
    "make_int8",
    "make_saturating",
    "saturating_input",
]


@dataclass(frozen=True)
class Layer:
    """Symmetric 4-bit codes with a half for each group: ``w = (code - 8) * scale``.

    Attributes:
        codes: uint8 [N, K], 0 to 15.
        scale: float16 [N, K / group_size].
    """

    codes: np.ndarray
    scale: np.ndarray

    @property
    def group_size(self) -> int:
        return int(self.codes.shape[1] // self.scale.shape[1])

    @property
    def packed(self) -> np.ndarray:
        """uint8 [N, K / 2], the first of two codes in the low bits."""
        return self.codes[:, ::2] | (self.codes[:, 1::2] << 4)

    @property
    def weight(self) -> np.ndarray:
        """float32 [N, K]."""
        scale = np.repeat(self.scale.astype(np.float32), self.group_size, axis=1)
        return (self.codes.astype(np.float32) - 8) * scale


def make(N: int, K: int, group_size: int, seed: int) -> Layer:
    """Codes of a normal distribution, as quantizing a trained weight gives them."""
    random = np.random.default_rng(seed)
    codes = np.clip(np.round(random.standard_normal((N, K), np.float32) * 2.7 + 8), 0, 15)
    scale = random.uniform(0.004, 0.01, (N, K // group_size)).astype(np.float16)
    return Layer(codes.astype(np.uint8), scale)


@dataclass(frozen=True)
class Int8Layer:
    """Symmetric int8 codes with a scale for each output: ``w = code * scale``.

    Attributes:
        codes: int8 [N, K], -127 to 127.
        scale: float32 [N].
    """

    codes: np.ndarray
    scale: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """float32 [N, K]."""
        return self.codes.astype(np.float32) * self.scale[:, None]


def make_int8(N: int, K: int, seed: int) -> Int8Layer:
    """Normally distributed weights, the largest of each output at 127."""
    weight = np.random.default_rng(seed).standard_normal((N, K), np.float32)
    scale = np.abs(weight).max(1) / 127
    return Int8Layer(np.round(weight / scale[:, None]).astype(np.int8), scale / np.float32(K**0.5))


def make_saturating(N: int, K: int) -> Int8Layer:
    """All weights at 127: with `saturating_input` every sum of two products is at its largest."""
    return Int8Layer(np.full((N, K), 127, np.int8), np.full(N, 0.01, np.float32))


def saturating_input(M: int, K: int) -> np.ndarray:
    """float32 [M, K], 0.95 to 1."""
    return np.random.default_rng(0).uniform(0.95, 1, (M, K)).astype(np.float32)


def activations(M: int, K: int) -> np.ndarray:
    """float32 [M, K]."""
    return np.random.default_rng(M * 100003 + K).standard_normal((M, K), np.float32)
