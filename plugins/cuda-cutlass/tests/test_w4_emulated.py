"""The kernel for a medium number of rows, run on the processor; see w4_emulation.h."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from w4_emulated import COMPILER, emulated, many_plan, planned, way
from w4_oracle import activations, assert_product, random_weight

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ for the emulation of kernels")

HALF, BFLOAT = torch.float16, torch.bfloat16
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def rounds_weights(M: int, group_size: int) -> bool:
    return M > 16 or group_size % 64 != 0


@pytest.mark.parametrize("M", [1, 8, 16, 17, 63, 65])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_and_groups(bits: int, group_size: int, M: int) -> None:
    K, N = 384, 160
    for dtype in (HALF, BFLOAT):
        w = random_weight(K, N, bits, group_size, dtype)
        x = activations(M, K, dtype)
        size = K if group_size == -1 else group_size
        for v2 in (False, True):
            out = emulated(x, w, v2=v2)
            assert_product(out, x, w.exact, rounds_weights(M, size), (dtype, v2))


@pytest.mark.parametrize("column_warps", range(1, 9))
@pytest.mark.parametrize("M", [12, 20])
def test_divisions(M: int, column_warps: int) -> None:
    """Any division, and threads and copies in any order, give the same to the last bit."""
    K, N = 1056, 288
    w = random_weight(K, N, 4, 96 if M > 16 else -1, BFLOAT)
    x = activations(M, K, BFLOAT)
    for split in (1, 2, 4, 8):
        for k_warps in (0, min(8, 16 // column_warps)):
            division = {"column_warps": column_warps, "split": split, "k_warps": k_warps}
            first = None
            for seed in (1, 2):
                out = emulated(x, w, **division, seed=seed)
                assert_product(out, x, w.exact, M > 16, (division, seed))
                first = out if first is None else first
                assert torch.equal(out, first)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("M", [9, 33])
def test_padding_and_bias(M: int, dtype: torch.dtype) -> None:
    """Fewer inputs than codes, fewer columns, a last group that is not whole, any result."""
    K, N, n_out, k_in = 416, 96, 77, 403
    w = random_weight(K, N, 4, 128, dtype)
    w.zeros[:] = 8
    x = activations(M, k_in, dtype)
    exact = w.exact[:k_in, :n_out]
    for bias in (torch.randn(n_out), torch.randn(n_out).to(dtype)):
        for out_float in (False, True):
            out = emulated(x, w, constant=8, bias=bias, n_out=n_out, out_float=out_float)
            # The bias is one more input, of 1.
            with_one = torch.cat([x, torch.ones(M, 1, dtype=dtype)], 1)
            both = torch.cat([exact, bias.double()[None]])
            assert_product(out, with_one, both, M > 16, (bias.dtype, out_float))


@pytest.mark.parametrize("M", [20, 40])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 96, 128, -1])
def test_zero_point_in_the_middle(group_size: int, bits: int, M: int) -> None:
    """Codes are multiplied as subnormal numbers: weights are the same for scales of any size."""
    K, N = 416, 96
    w = random_weight(K, N, bits, group_size, BFLOAT)
    w.zeros[:] = 1 << (bits - 1)
    w.scales *= torch.logspace(-24, 24, N, base=2).to(BFLOAT)
    w.scales[:, 5] = 0
    x = activations(M, K, BFLOAT)
    out = emulated(x, w, constant=1 << (bits - 1))
    assert_product(out, x, w.exact, True, None)
    assert torch.equal(out, emulated(x, w, v2=True))


@pytest.mark.parametrize("M", [1, 9, 20, 40])
@pytest.mark.parametrize("group_size", [64, 192, 128, -1])
def test_words_of_lanes(group_size: int, M: int) -> None:
    """Inputs are added up in another order than that of words in GPTQ's order."""
    K, N = 384, 96
    w = random_weight(K, N, 4, group_size, BFLOAT)
    w.zeros[:] = 8
    x = activations(M, K, BFLOAT)
    bias = torch.randn(77)
    with_one = torch.cat([x, torch.ones(M, 1, dtype=BFLOAT)], 1)
    exact = torch.cat([w.exact[:, :77], bias.double()[None]])
    for plan in ({}, {"column_warps": 2, "split": 2, "k_warps": 1}):
        given: dict[str, Any] = {"constant": 8, "bias": bias, "n_out": 77, **plan}
        out = emulated(x, w, lanes=True, **given)
        assert_product(out, with_one, exact, M > 16, plan)
        assert (out != emulated(x, w, **given)).float().mean() < 0.01


SHAPES = [(4096, 4096), (28672, 4096), (4096, 14336), (1024, 4096), (32, 32), (152064, 5120)]


def test_plans_fill_the_processors() -> None:
    for N, K in SHAPES:
        for M in (8, 16, 32, 64, 128, 256):
            for bits in (4, 8):
                p = planned(M, N, K, bits)
                in_block = p["column_warps"] * p["k_warps"]
                alone = p["row_tiles"] == 8 or in_block > 8  # on its processor
                # Beside the stage that is read, as many words are on their way to a processor as
                # memory brings it in half a microsecond, which is about its latency.
                pieces = in_block * (2 if p["row_tiles"] <= 4 and bits == 4 else 1)
                coming = (p["stages"] - 1) * pieces * 256 * bits * (1 if alone else 2)
                assert p["stages"] >= 2, (N, K, M, p)
                assert coming >= 16384, (N, K, M, p)
                assert p["bytes"] <= 227 * 1024 // (1 if alone else 2) - 1024
                assert in_block <= (15 if p["row_tiles"] == 8 else 16)
                warps = N // 32 * -(-M // (8 * p["row_tiles"])) * p["split"]
                blocks = -(-N // 32 // p["column_warps"]) * p["split"]
                blocks *= -(-M // (8 * p["row_tiles"]))
                busiest = -(-blocks // 132) * p["column_warps"]
                if warps >= 8 * 132 and K >= 4096:
                    assert warps / 132 / busiest > 0.8, (N, K, M, p)


@pytest.mark.skipif(not (BENCHMARKS / "cuda_plans.py").exists(), reason="no benchmarks here")
def test_plans_are_those_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `benchmarks/cuda_plans.py` fits is what the kernel computes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fitted = importlib.import_module("cuda_plans")
    for N, K in [*SHAPES[:4], *fitted.MORE_SHAPES]:
        for M in (1, 16, 32, 64, 200):
            for bits in (4, 8):
                given = np.array(fitted.divisions(M))
                problem = fitted.Problem(N, K, M, bits, given, np.zeros(len(given)))
                problem.divisions = given[problem.allowed()]
                best = problem.divisions[problem.cost(np.array(fitted.START)).argmin()]
                p = planned(M, N, K, bits)
                assert (p["column_warps"], p["split"], p["k_warps"]) == tuple(best), (N, K, M, bits)


def test_ways() -> None:
    rows = (1, 7, 8, 32, 33, 64, 65, 4096)
    assert [way(M, 4096) for M in rows] == [*["mid"] * 6, *["many"] * 2]
    assert [way(M, 28672) for M in rows] == [*["mid"] * 4, *["many"] * 4]
    assert [way(M, 4096, 14336) for M in (32, 33)] == ["mid", "many"]
    assert [way(M, N) for M, N in ((33, 5632), (33, 5760), (32, 28672))] == ["mid", "many", "mid"]
    assert [way(M, 28672, whole=False) for M in (8, 16, 17)] == ["few", "few", "mid"]
    assert [way(M, 4096, can="few sm90") for M in (16, 17, 64)] == ["few", "many", "many"]
    assert [way(M, 4096, can="few") for M in (32, 33)] == ["few", "whole"]
    assert way(5, 4096, can="") == "whole"
    assert way(33, 4096, few_rows=40) == "few"
    assert way(33, 4096, few_rows=0) == "mid"


def test_plans_of_many_rows() -> None:
    """Those that were the fastest, or nearly, of all on an H200."""
    assert many_plan(64, 28672, 4096) == (64, 128, 0)
    assert many_plan(64, 4096, 14336) == (64, 128, 7)
    assert many_plan(128, 4096, 4096) == (64, 128, 2)
    assert many_plan(128, 4096, 14336) == (128, 128, 3)
    assert many_plan(128, 28672, 4096) == (128, 128, -12)
    assert many_plan(256, 4096, 14336) == (128, 128, 2)
    assert many_plan(256, 28672, 4096) == (128, 128, -30)
    assert many_plan(384, 4096, 4096) == (128, 128, -10)
    assert many_plan(1024, 28672, 4096) == (256, 128, 0)
    assert many_plan(8192, 4096, 4096) == (256, 128, 0)
    # Where tiles leave processors idle that no division of K would use.
    assert many_plan(128, 10240, 8192) == (128, 128, -38)
    assert many_plan(256, 34816, 5120) == (128, 128, -60)
    assert many_plan(1024, 5120, 17408) == (128, 128, -130)
    # A few blocks that are left over have a processor each.
    assert many_plan(64, 34816, 5120, few_help=False) == (64, 128, 0)
    assert many_plan(64, 34816, 5120) == (64, 128, -50)
    assert many_plan(64, 22016, 4096) == (64, 128, -18)
    assert many_plan(64, 10240, 8192) == (64, 128, 4)


def test_a_plan_for_every_size() -> None:
    """No part of K is empty, no tile larger than it need be, and each keeps some of K."""
    for M in (1, 33, 64, 65, 129, 500, 5000):
        for N in (32, 160, 4096, 100_000):
            for K in (32, 480, 512, 4096):
                rows, columns, parts = many_plan(M, N, K)
                assert parts <= 0 or 256 * parts <= K
                assert parts >= 0 or 64 * (1 - parts) <= K
                assert rows < 2 * max(M, 64)
                assert columns in (128, 256)
