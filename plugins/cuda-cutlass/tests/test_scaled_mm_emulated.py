"""SM90's 8-bit kernels on the processor: nothing is read or given back too early.

And all is added, once. What their instructions really do, the tests on a GPU find out.
"""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from host_compiler import COMPILER, compiled

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels")

HERE = Path(__file__).parent
POINTERS = ("a", "b", "a_scale", "b_scale", "bias", "azp", "azp_adj", "out")
SIZES = ("m", "n", "k", "a_scale_row", "b_scale_row")
NUMBERS = (*SIZES, "clusters", "shared", "rows", "int8", "seed")

TILES = [
    *product((64, 128, 256), ("fp8", "int8")),
    *product((64, 128), ("fp8 block",)),
]
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


def codes(rows: int, K: int, int8: bool, random: torch.Generator) -> torch.Tensor:
    if int8:
        return torch.randint(-128, 128, (rows, K), generator=random, dtype=torch.int8)
    return torch.randn(rows, K, generator=random).mul(4).to(torch.float8_e4m3fn)


def padded_rows(scales: torch.Tensor) -> torch.Tensor:
    """Of multiples of four floats, as the copy engine wants them; NaN behind."""
    missing = -scales.shape[1] % 4
    return torch.nn.functional.pad(scales, (0, missing), value=torch.nan).contiguous()


def check(
    M: int, N: int, K: int, clusters: int, rows: int, *, kind: str, shared: bool, bias: bool
) -> int:
    """Multiply in tiles of so many rows, or of few columns, compare; how many clusters share."""
    by_block, int8 = kind == "fp8 block", kind == "int8"
    random = torch.Generator().manual_seed(M + N)
    a, b = (codes(R, K, int8, random) for R in (M, N))
    k_blocks, n_blocks = -(-K // 128), -(-N // 128)
    shapes = ((k_blocks, M), (n_blocks, k_blocks)) if by_block else ((1, M), (1, N))
    of_a, of_b = (padded_rows(torch.rand(shape, generator=random) + 0.5) for shape in shapes)
    of_columns = torch.randn(N, generator=random).bfloat16() if bias else None
    azp, azp_adj = None, None
    if int8:
        azp = torch.randint(-128, 128, (M,), generator=random, dtype=torch.int32)
        azp_adj = b.sum(1, dtype=torch.int32)
    out = torch.full((M, N), torch.nan, dtype=torch.bfloat16)
    tensors = (a, b, of_a, of_b, of_columns, azp, azp_adj, out)
    pointers = (0 if t is None else t.data_ptr() for t in tensors)
    widths = (of_a.shape[1], of_b.shape[1]) if by_block else (0, 0)
    found = (ctypes.c_int * 3)()
    division = (clusters, int(shared), rows)
    arguments = Arguments(*pointers, M, N, K, *widths, *division, int(int8), M + N)
    kernel = "columns" if rows == 0 else "blocks" if by_block and rows == 128 else "tiles"
    library(kernel).multiply(ctypes.byref(arguments), found)

    wide_a, wide_b = of_a.double()[:, :M].t(), of_b.double()[:, :k_blocks]
    if by_block:
        wide_a = wide_a.repeat_interleave(128, 1)[:, :K]
        wide_b = wide_b.repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    else:
        wide_b = of_b.double()[:, :N].t()
    meant = a.double() if azp is None else a.double() - azp.double()[:, None]
    scaled_a, scaled_b = meant * wide_a, b.double() * wide_b
    exact, size = scaled_a @ scaled_b.t(), scaled_a.abs() @ scaled_b.abs().t()
    if of_columns is not None:
        exact += of_columns.double()
    roundings = 4 if int8 else 128 + K
    slack = exact.abs() * 2.0**-8 + size * roundings * 2.0**-24
    assert ((out.double() - exact).abs() <= slack).all()
    assert found[2] == 0  # flags are as they were
    return found[1]


@pytest.mark.parametrize(("rows", "kind"), TILES)
@pytest.mark.parametrize(("M", "N", "K", "clusters"), WHOLE)
def test_whole_tiles(M: int, N: int, K: int, clusters: int, rows: int, kind: str) -> None:
    check(M, N, K, clusters, rows, kind=kind, shared=False, bias=M % 2 == 0)


@pytest.mark.parametrize(("rows", "kind"), TILES)
@pytest.mark.parametrize(("M", "N", "K", "clusters"), SHARED)
def test_shared_tiles(M: int, N: int, K: int, clusters: int, rows: int, kind: str) -> None:
    assert check(M, N, K, clusters, rows, kind=kind, shared=True, bias=True) > 1


@pytest.mark.parametrize("kind", ["fp8", "int8", "fp8 block", "pairs"])
@pytest.mark.parametrize(
    ("M", "N", "K", "processors"),
    [
        (1, 8, 1152, 2),
        (5, 200, 1424, 4),  # four warpgroups share K, or two; pieces of K that end within
        (16, 520, 2048, 2),  # several rounds of blocks
        (31, 250, 4224, 2),  # one warpgroup has no columns; an odd number of steps
        (64, 130, 1408, 2),
    ],
)
def test_few_rows(M: int, N: int, K: int, processors: int, kind: str) -> None:
    if M > 32 and kind in ("fp8 block", "pairs"):
        pytest.skip("up to 32 rows")
    pairs = kind == "pairs"
    kind = "fp8 block" if pairs else kind
    check(M, N // 8 * 8, K, processors, 0, kind=kind, shared=pairs, bias=M % 2 == 0)


def test_scales_in_several_boxes() -> None:
    check(3, 128, 9216, 1, 128, kind="fp8 block", shared=False, bias=False)
