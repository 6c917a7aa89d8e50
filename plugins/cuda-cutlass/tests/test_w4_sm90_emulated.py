"""The kernel for many rows and packed weights, run on the processor; see sm90_emulation.h."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_float_oracle import random_float_weight
from w4_emulated import COMPILER, emulated
from w4_oracle import activations, assert_product, random_weight

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ for the emulation of kernels")

HALF, BFLOAT = torch.float16, torch.bfloat16
TILES = [(64, 128), (128, 128), (128, 256), (256, 128)]


def division(
    tile: tuple[int, int], parts: int = 0, given: int = 0, clusters: int = 2
) -> dict[str, int]:
    return {
        "row_tiles": tile[0],
        "column_warps": tile[1],
        "split": parts,
        "k_warps": given,
        "many": clusters,
    }


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_tiles_and_groups(bits: int, group_size: int, tile: tuple[int, int]) -> None:
    """Whole tiles, several for each cluster; the last ones end within."""
    M, K, N = 70, 384, 416
    dtype, v2 = (HALF, False) if group_size == 64 else (BFLOAT, True)
    w = random_weight(K, N, bits, group_size, dtype)
    x = activations(M, K, dtype)
    out = emulated(x, w, v2=v2, **division(tile, clusters=1))
    assert_product(out, x, w.exact, True, (dtype, v2))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_k(parts: int, tile: tuple[int, int]) -> None:
    """Threads and copies in any order give the same to the last bit."""
    M, K, N = 33, 1056, 160
    w = random_weight(K, N, 4, 96, BFLOAT)
    x = activations(M, K, BFLOAT)
    outs = [emulated(x, w, seed=seed, **division(tile, parts)) for seed in (1, 2)]
    assert_product(outs[0], x, w.exact, True, parts)
    assert torch.equal(*outs)


@pytest.mark.parametrize("tile", TILES)
def test_clusters_that_help(tile: tuple[int, int]) -> None:
    M, K, N = 40, 1024, 2 * tile[1]
    w = random_weight(K, N, 4, 128, BFLOAT)
    x = activations(M, K, BFLOAT)
    for given in (1, 3):  # stages
        out = emulated(x, w, **division(tile, given=given, clusters=2))
        assert_product(out, x, w.exact, True, given)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_padding_and_bias(dtype: torch.dtype) -> None:
    """Fewer inputs than codes, fewer columns, a last group that is not whole."""
    M, K, N, n_out, k_in = 9, 416, 96, 77, 403
    w = random_weight(K, N, 4, 128, dtype)
    w.zeros[:] = 8
    x = activations(M, k_in, dtype)
    for parts in (0, 2):
        for bias in (torch.randn(n_out), torch.randn(n_out).to(dtype)):
            out = emulated(x, w, constant=8, bias=bias, n_out=n_out, **division((64, 128), parts))
            # The bias is one more input, of 1.
            with_one = torch.cat([x, torch.ones(M, 1, dtype=dtype)], 1)
            both = torch.cat([w.exact[:k_in, :n_out], bias.double()[None]])
            assert_product(out, with_one, both, True, (bias.dtype, parts))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (4, -1), (8, 96), (8, -1)])
def test_zero_point_in_the_middle(bits: int, group_size: int, tile: tuple[int, int]) -> None:
    """Codes are multiplied as subnormal numbers: weights are the same for scales of any size."""
    M, K, N = 70, 384, 416
    w = random_weight(K, N, bits, group_size, BFLOAT)
    w.zeros[:] = 1 << (bits - 1)
    w.scales *= torch.logspace(-24, 24, N, base=2).to(BFLOAT)
    w.scales[:, 5] = 0
    x = activations(M, K, BFLOAT)
    for parts in (0, 2):
        out = emulated(x, w, constant=1 << (bits - 1), **division(tile, parts))
        assert_product(out, x, w.exact, True, (tile, parts))
        assert torch.equal(out, emulated(x, w, v2=True, **division(tile, parts)))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("group_size", [64, 128, -1])
def test_words_of_lanes(group_size: int, tile: tuple[int, int]) -> None:
    """To the bit what words in GPTQ's order give."""
    M, K, N = 70, 384, 416
    w = random_weight(K, N, 4, group_size, BFLOAT)
    w.zeros[:] = 8
    x = activations(M, K, BFLOAT)
    for parts in (0, 2):
        given: dict[str, Any] = {"constant": 8, "n_out": 411, **division(tile, parts)}
        assert torch.equal(emulated(x, w, lanes=True, **given), emulated(x, w, **given))


@pytest.mark.parametrize(("bits", "group_size"), [(8, -1), (8, 128), (4, 16)])
def test_floats(bits: int, group_size: int) -> None:
    """FP8, and NVFP4, whose scales are part of the pairs."""
    w = random_float_weight(416, 160, bits, group_size, BFLOAT)
    x = activations(20, 416, BFLOAT)
    for tile in TILES[:2]:
        out = emulated(x, w, **division(tile))
        assert_product(out, x, w.exact, True, tile)
