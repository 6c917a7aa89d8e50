"""SM90's kernels of large FP8 tiles on the processor: nothing is read or given back too early.

And all is added, once. What their instructions really do, the tests on a GPU find out.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import pytest
import torch
from host_compiler import COMPILER, compiled

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels")

HERE = Path(__file__).parent
POINTERS = ("a", "b", "a_scale", "b_scale", "bias", "out")
NUMBERS = ("m", "n", "k", "a_scale_row", "b_scale_row", "clusters", "shared", "rows", "seed")

TILES = [(64, False), (128, False), (256, False), (64, True), (128, True)]
WHOLE = [
    (1, 8, 16, 2),
    (130, 136, 304, 2),  # odd numbers of steps, tiles that end within
    (
        129,
        264,
        1168,
        1,
    ),  # more steps than there are stages; a cluster's second block has no columns
    (200, 520, 400, 2),  # a cluster has several tiles
]
SHARED = [
    (100, 1280, 2048, 7),  # clusters have a part of one tile and of the next
    (130, 520, 1424, 4),
    (70, 1000, 2992, 6),
]


class Arguments(ctypes.Structure):
    """Of scaled_mm_emulated.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int) for name in NUMBERS),
    )


@cache
def library(name: str) -> ctypes.CDLL:
    source = (HERE / f"{name}_emulated.cpp").read_text(encoding="utf-8")
    return compiled(source, f"-I{HERE / 'emulated'}", f"-I{HERE}")


def padded_rows(scales: torch.Tensor) -> torch.Tensor:
    """Of multiples of four floats, as the copy engine wants them; NaN behind."""
    missing = -scales.shape[1] % 4
    return torch.nn.functional.pad(scales, (0, missing), value=torch.nan).contiguous()


def check(
    M: int, N: int, K: int, clusters: int, rows: int, *, by_block: bool, shared: bool, bias: bool
) -> int:
    """Multiply in tiles of so many rows, compare; how many clusters shared tiles."""
    random = torch.Generator().manual_seed(M + N)
    a, b = (torch.randn(R, K, generator=random).mul(4).to(torch.float8_e4m3fn) for R in (M, N))
    k_blocks, n_blocks = -(-K // 128), -(-N // 128)
    shapes = ((k_blocks, M), (n_blocks, k_blocks)) if by_block else ((1, M), (1, N))
    of_a, of_b = (padded_rows(torch.rand(shape, generator=random) + 0.5) for shape in shapes)
    of_columns = torch.randn(N, generator=random).bfloat16() if bias else None
    out = torch.full((M, N), torch.nan, dtype=torch.bfloat16)
    pointers = (0 if t is None else t.data_ptr() for t in (a, b, of_a, of_b, of_columns, out))
    widths = (of_a.shape[1], of_b.shape[1]) if by_block else (0, 0)
    found = (ctypes.c_int * 3)()
    arguments = Arguments(*pointers, M, N, K, *widths, clusters, int(shared), rows, M + N)
    kernel = "blocks" if by_block and rows == 128 else "tiles"
    library(kernel).multiply(ctypes.byref(arguments), found)

    wide_a, wide_b = of_a.double()[:, :M].t(), of_b.double()[:, :k_blocks]
    if by_block:
        wide_a = wide_a.repeat_interleave(128, 1)[:, :K]
        wide_b = wide_b.repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    else:
        wide_b = of_b.double()[:, :N].t()
    scaled_a, scaled_b = a.double() * wide_a, b.double() * wide_b
    exact, size = scaled_a @ scaled_b.t(), scaled_a.abs() @ scaled_b.abs().t()
    if of_columns is not None:
        exact += of_columns.double()
    slack = exact.abs() * 2.0**-8 + size * (128 + K) * 2.0**-24
    assert ((out.double() - exact).abs() <= slack).all()
    assert found[2] == 0  # flags are as they were
    return found[1]


@pytest.mark.parametrize(("rows", "by_block"), TILES)
@pytest.mark.parametrize(("M", "N", "K", "clusters"), WHOLE)
def test_whole_tiles(M: int, N: int, K: int, clusters: int, rows: int, by_block: bool) -> None:
    check(M, N, K, clusters, rows, by_block=by_block, shared=False, bias=M % 2 == 0)


@pytest.mark.parametrize(("rows", "by_block"), TILES)
@pytest.mark.parametrize(("M", "N", "K", "clusters"), SHARED)
def test_shared_tiles(M: int, N: int, K: int, clusters: int, rows: int, by_block: bool) -> None:
    assert check(M, N, K, clusters, rows, by_block=by_block, shared=True, bias=True) > 1


def test_scales_in_several_boxes() -> None:
    check(3, 128, 9216, 1, 128, by_block=True, shared=False, bias=False)
