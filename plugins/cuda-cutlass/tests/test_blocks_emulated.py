"""csrc/scaled_mm_sm90_blocks.cuh on the processor: nothing is read or given back too early.

And all is added, once. What its instructions really do, the tests on a GPU find out.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import pytest
import torch
from host_compiler import COMPILER, compiled

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernel")

HERE = Path(__file__).parent
POINTERS = ("a", "b", "a_scale", "b_scale", "bias", "out")
NUMBERS = ("m", "n", "k", "a_scale_row", "b_scale_row", "clusters", "shared", "seed")

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
    (3, 128, 9216, 1),  # b's scales in two boxes
]
SHARED = [
    (100, 1280, 2048, 7),  # clusters have a part of one tile and of the next
    (130, 520, 1424, 5),
    (70, 1000, 2992, 6),
]


class Arguments(ctypes.Structure):
    """Of blocks_emulated.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int) for name in NUMBERS),
    )


@cache
def library() -> ctypes.CDLL:
    source = (HERE / "blocks_emulated.cpp").read_text(encoding="utf-8")
    return compiled(source, f"-I{HERE / 'emulated'}", f"-I{HERE}")


def padded_rows(scales: torch.Tensor) -> torch.Tensor:
    """Of multiples of four floats, as the copy engine wants them; NaN behind."""
    missing = -scales.shape[1] % 4
    return torch.nn.functional.pad(scales, (0, missing), value=torch.nan).contiguous()


def check(M: int, N: int, K: int, clusters: int, shared: bool, bias: bool, seed: int) -> int:
    """Multiply, compare; how many clusters shared tiles."""
    random = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(rows, K, generator=random).mul(4).to(torch.float8_e4m3fn) for rows in (M, N)
    )
    k_blocks, n_blocks = -(-K // 128), -(-N // 128)
    a_scale = torch.rand(k_blocks, M, generator=random) + 0.5
    b_scale = torch.rand(n_blocks, k_blocks, generator=random) + 0.5
    of_columns = torch.randn(N, generator=random).bfloat16() if bias else None
    out = torch.full((M, N), torch.nan, dtype=torch.bfloat16)
    rows_of_a, rows_of_b = padded_rows(a_scale), padded_rows(b_scale)
    tensors = (a, b, rows_of_a, rows_of_b, of_columns, out)
    pointers = (0 if t is None else t.data_ptr() for t in tensors)
    widths = rows_of_a.shape[1], rows_of_b.shape[1]
    found = (ctypes.c_int * 3)()
    arguments = Arguments(*pointers, M, N, K, *widths, clusters, int(shared), seed)
    library().multiply(ctypes.byref(arguments), found)

    scaled_a = a.double() * a_scale.double().t().repeat_interleave(128, 1)[:, :K]
    wide = b_scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    scaled_b = b.double() * wide
    exact, size = scaled_a @ scaled_b.t(), scaled_a.abs() @ scaled_b.abs().t()
    if of_columns is not None:
        exact += of_columns.double()
    slack = exact.abs() * 2.0**-8 + size * (128 + k_blocks) * 2.0**-24
    assert ((out.double() - exact).abs() <= slack).all()
    assert found[2] == 0  # flags are as they were
    return found[1]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("M", "N", "K", "clusters"), WHOLE)
def test_whole_tiles(M: int, N: int, K: int, clusters: int, bias: bool) -> None:
    check(M, N, K, clusters, False, bias, seed=M)


@pytest.mark.parametrize(("M", "N", "K", "clusters"), SHARED)
def test_shared_tiles(M: int, N: int, K: int, clusters: int) -> None:
    assert check(M, N, K, clusters, True, True, seed=N) > 1
