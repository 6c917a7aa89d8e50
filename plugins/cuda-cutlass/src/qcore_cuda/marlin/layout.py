"""Weights, scales and zero points into Marlin's layout, with torch, on any device.

The layout is that of vLLM's repacking ops: see `csrc/marlin_layout.cuh`. Matrices are padded with
zeros to whole pieces: K to 16 (32 for 8-bit activations) and whole groups, N to 64.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm

import torch
from qcore.numerics.packing import pack_int32

from qcore_cuda.kernels.padding import pad_to

__all__ = ["bias_order", "pack_codes", "pack_zeros", "padded_shape", "scale_order"]

Tensor = torch.Tensor

_GROUPED = tuple(i + 8 * j for i in range(8) for j in range(8))
_SINGLE = tuple(2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25))
_INTERLEAVED = {
    (4, False): (0, 2, 4, 6, 1, 3, 5, 7),
    (4, True): (0, 4, 1, 5, 2, 6, 3, 7),
    (8, False): (0, 2, 1, 3),
    (8, True): (0, 1, 2, 3),
}


def padded_shape(K: int, N: int, group_size: int, a_8bit: bool) -> tuple[int, int]:
    """K and N of the packed weight; ``group_size`` is -1 for one group."""
    step = 32 if a_8bit else 16
    unit = step if group_size == -1 else lcm(step, group_size)
    return -(-K // unit) * unit, -(-N // 64) * 64


@lru_cache(maxsize=8)
def _places(bits: int, a_8bit: bool) -> tuple[int, ...]:
    """For each code of a piece, in the order of storage, its place in tiles of 16 outputs."""
    places: list[int] = []
    for thread in range(32):
        if a_8bit:
            rows = [4 * (thread % 4) + r + 16 * h for h in (0, 1) for r in range(4)]
        else:
            rows = [2 * (thread % 4) + r + 8 * h for h in (0, 1) for r in (0, 1)]
        mine = [16 * row + thread // 4 + 8 * block for block in (0, 1) for row in rows]
        for tile in range(2 if a_8bit else 4):
            places += [place + (512 if a_8bit else 256) * tile for place in mine]
    order = _INTERLEAVED[bits, a_8bit]
    runs = range(0, len(places), len(order))
    return tuple(places[start + i] for start in runs for i in order)


def pack_codes(codes: Tensor, bits: int, a_8bit: bool = False) -> Tensor:
    """uint8 [K, N], sizes whole pieces, to int32 [K / 16, N * bits / 2]."""
    K, N = codes.shape
    rows = 32 if a_8bit else 16
    tiles = codes.reshape(K // rows, rows, N // 16, 16).transpose(1, 2).reshape(-1, 1024)
    index = torch.tensor(_places(bits, a_8bit), device=codes.device)
    return pack_int32(tiles[:, index].reshape(K // 16, N * 16), bits, 1)


def _columns(matrix: Tensor, order: tuple[int, ...]) -> Tensor:
    index = torch.tensor(order, device=matrix.device)
    return matrix.reshape(-1, len(order))[:, index].reshape(matrix.shape)


def scale_order(scales: Tensor, grouped: bool, a_8bit: bool = False) -> Tensor:
    """Rows [G, N], N a multiple of 64, in the order of groups or of one group."""
    return _columns(scales, _GROUPED if grouped and not a_8bit else _SINGLE).contiguous()


def bias_order(bias: Tensor) -> Tensor:
    """[N], padded to 64, in the order of scales for one group."""
    return _columns(pad_to(bias, 0, 64)[None], _SINGLE)[0].contiguous()


def pack_zeros(zeros: Tensor, bits: int, a_8bit: bool = False) -> Tensor:
    """uint8 [G, N], N a multiple of 64, to int32 [G, N * bits / 32]."""
    ordered = _columns(zeros, _GROUPED)
    if not a_8bit:
        ordered = _columns(ordered, _INTERLEAVED[bits, False])
    return pack_int32(ordered, bits, 1)
