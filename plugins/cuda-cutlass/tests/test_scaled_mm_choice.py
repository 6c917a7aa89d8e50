"""Which kernel of 8-bit products is chosen, by csrc/scaled_mm_choice.h on the processor."""

from __future__ import annotations

import ctypes
import importlib
import json
from pathlib import Path

import pytest
from host_compiler import COMPILER, CSRC, compiled
from shared_tiles import share

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the choice")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "cuda_paths.json"
needs_times = pytest.mark.skipif(not RESULTS.exists(), reason="no benchmarks here")

SOURCE = """
#include "scaled_mm_choice.h"

using namespace qcore_cuda::choice;

extern "C" const char* choose(int kind, int m, int n, int k, const char* without) {
  const auto can = [&](std::string_view name) { return name != without; };
  const auto of = [&](const auto& paths, const auto& times) {
    return fastest(paths, times, m, n, k, can);
  };
  const std::string_view found = kind == 0   ? of(kFp8Paths, kFp8Times)
                                 : kind == 1 ? of(kInt8Paths, kInt8Times)
                                             : of(kFp8BlockPaths, kFp8BlockTimes);
  return found.empty() ? "" : found.data();  // literals, which end with a zero
}
"""
KINDS = ("fp8", "int8", "fp8 block")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    found = compiled(SOURCE)
    found.choose.restype = ctypes.c_char_p
    return found


def choose(library: ctypes.CDLL, kind: str, M: int, N: int, K: int, without: str = "") -> str:
    found: bytes = library.choose(KINDS.index(kind), M, N, K, without.encode())
    return found.decode()


@needs_times
def test_the_fastest_where_it_was_measured(library: ctypes.CDLL) -> None:
    for row in json.loads(RESULTS.read_text(encoding="utf-8"))["results"]:
        path = choose(library, row["kind"], row["M"], row["N"], row["K"])
        others = {p: us for p, us in row["us"].items() if p not in ("skinny", "portable")}
        assert 0.97 * others[path] <= min(others.values()), row


@needs_times
def test_the_table_and_the_choice_are_those_of_the_benchmark(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    paths = importlib.import_module("cuda_paths")
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert paths.table(document) == (CSRC / "scaled_mm_path_table.h").read_text(encoding="utf-8")
    choice = paths.Choice(document["results"])
    for kind in KINDS:
        for N, K in ((4096, 4096), (12288, 4096), (2112, 7168), (151936, 2560), (64, 64)):
            for M in (1, 7, 65, 300, 5000, 100_000):
                assert choose(library, kind, M, N, K) == choice.path(kind, N, K, M), (kind, M, N, K)


@needs_times
def test_tiles_are_shared_as_the_benchmark_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    paths = importlib.import_module("cuda_paths")
    for clusters in (66, 132):
        for tiles in range(1, 3 * clusters):
            for steps in (1, 3, 8, 31, 112):
                assert share(tiles, clusters, steps) == paths.share(tiles, clusters, steps)


def test_what_cannot_run_is_not_chosen(library: ctypes.CDLL) -> None:
    for kind in KINDS:
        for M in (1, 16, 33, 64, 65, 4096):
            first = choose(library, kind, M, 4096, 4096)
            other = choose(library, kind, M, 4096, 4096, without=first)
            assert "" not in (first, other)
            assert other != first
    # It takes 64 rows at most, 32 with scales by block.
    assert choose(library, "fp8", 16, 28672, 4096) == "sm90_columns"
    assert choose(library, "fp8 block", 33, 28672, 4096) != "sm90_columns"
    assert choose(library, "fp8", 65, 28672, 4096) != "sm90_columns"
