"""AITER's and hipBLASLt's orders, stated in numpy by the place of each byte, for comparison.

Weights: hipBLASLt's documentation of ``HIPBLASLT_ORDER_COL16_4R16`` (hipblaslt.h): composite tiles
of 16 columns (outputs) and 64 rows (inputs), which are 4 tiles of 16 x 16 one behind the other,
each by columns. Scales: each lane of a wave of 64 loads one word of four, for two matrix
instructions of 16 rows by 128 inputs in each direction; its row is ``lane % 16``, its group of 32
inputs ``lane // 16``. This is said of AITER's ``e8m0_shuffle``, whose bytes it gives; AMD's
calculator of lanes does not know these instructions yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["col16_4r16", "scale_words"]

Array = np.ndarray[Any, Any]


def col16_4r16(weight: Array) -> Array:
    """Bytes [N, K], K a multiple of 64, in hipBLASLt's order, flat."""
    N, K = weight.shape
    flat = np.zeros(N * K, weight.dtype)
    n, k = np.meshgrid(np.arange(N), np.arange(K), indexing="ij")
    column, row = n % 16, k % 64
    within = row % 16 + 16 * column + row // 16 * 16 * 16
    flat[(n // 16 * (K // 64) + k // 64) * (16 * 64) + within] = weight
    return flat


def scale_words(scale: Array) -> Array:
    """Bytes [rows, groups], multiples of 32 and 8, word after word of four, flat."""
    rows, groups = scale.shape
    words = []
    for row in range(0, rows, 32):
        for group in range(0, groups, 8):
            for lane in range(64):
                at, part = row + lane % 16, group + lane // 16
                words += [scale[at, part], scale[at + 16, part]]
                words += [scale[at, part + 4], scale[at + 16, part + 4]]
    return np.array(words, scale.dtype)
