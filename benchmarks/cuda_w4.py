"""Times weight-only products on a GPU: `gptq_gemm`, `awq_gemm`, and bfloat16 beside them.

    python benchmarks/cuda_w4.py results.json              # all shapes and row counts
    python benchmarks/cuda_w4.py sweep.json --sweep        # every division of the work, M <= 64
    python benchmarks/cuda_w4.py crossing.json --crossing  # few rows' kernel or dequantized, by M
    python benchmarks/cuda_w4.py crossing.json --marlin    # the same of Marlin's layout

Each figure is the median of replays of a CUDA graph that runs the layer on several copies of its
weights in turn, more of them than the L2 cache holds, so that weights come from memory as they do
in a model. Microseconds. ``floor`` is the weights' bytes at the bandwidth of the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cuda_timing import Step, bandwidth, copies_of, median_us
from environment import environment
from qcore.facts.scalar_type import scalar_types
from qcore_cuda import library

SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))  # N, K
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
GROUP = 128
UINT4B8 = scalar_types.uint4b8.id
Rows = list[dict[str, Any]]
Steps = Callable[[int], list[Step]]  # for a number of rows


class Layer:
    """Random weights of one shape, several copies of each kind."""

    def __init__(self, N: int, K: int, dtype: torch.dtype) -> None:
        self.N, self.K, self.dtype = N, K, dtype
        self.bytes = N * K // 2 + N * (K // GROUP) * 2
        copies = copies_of(self.bytes)
        self.gptq = [self._words(K // 8, N) for _ in range(copies)]
        self.awq = [
            (self._words(K, N // 8), self._words(K // GROUP, N // 8)) for _ in range(copies)
        ]
        self.scales = [
            torch.rand(K // GROUP, N, device="cuda").mul(0.01).to(dtype) for _ in range(copies)
        ]
        dense = copies_of(2 * N * K, 10)
        self.dense = [torch.randn(K, N, device="cuda").to(dtype) for _ in range(dense)]

    @staticmethod
    def _words(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, (rows, columns), device="cuda").int()

    def input(self, M: int) -> torch.Tensor:
        return torch.randn(M, self.K, device="cuda").to(self.dtype)

    def linear(self, M: int, few_rows: int = -1) -> list[Step]:
        """Symmetric 4 bits, shuffled, as a layer's kernel calls it."""
        x, op = self.input(M), torch.ops.qcore_cuda.wna16_linear
        rest = (None, None, None, None, 4, 8, GROUP, self.K, self.N, False, few_rows)
        return [partial(op, x, w, s, *rest) for w, s in zip(self.gptq, self.scales, strict=True)]

    def awq_gemm(self, M: int, few_rows: int, *division: int) -> list[Step]:
        x, op = self.input(M), torch.ops.qcore_cuda.awq_gemm_divided
        weights = zip(self.awq, self.scales, strict=True)
        return [partial(op, x, w, s, z, few_rows, *division) for (w, z), s in weights]

    def small_m(self, M: int, *division: int) -> list[Step]:
        x, op = self.input(M), torch.ops.qcore_cuda.wna16_small_m
        rest = (None, 4, 8, GROUP, *division)
        return [partial(op, x, w, s, *rest) for w, s in zip(self.gptq, self.scales, strict=True)]

    def marlin(self, M: int) -> list[Step]:
        """By Marlin's kernels."""
        x, op = self.input(M), torch.ops.qcore_cuda.marlin_linear
        workspace = torch.zeros(1024, dtype=torch.int32, device="cuda")
        rest = (*(None,) * 6, workspace, UINT4B8, self.N, None)
        return [partial(op, x, w, s, *rest) for w, s in self._of_marlin()]

    def marlin_dequantized(self, M: int) -> list[Step]:
        x, op = self.input(M), torch.ops.qcore_cuda.marlin_dequantize
        rest = (None, None, UINT4B8, self.K, self.N, self.dtype)

        def step(words: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
            return torch.matmul(x, op(words, scales, *rest))

        return [partial(step, w, s) for w, s in self._of_marlin()]

    def _of_marlin(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The same words, as many as Marlin's layout has; scales."""
        words = (w.view(self.K // 16, 2 * self.N) for w in self.gptq)
        return zip(words, self.scales, strict=True)

    def matmul(self, M: int) -> list[Step]:
        x = self.input(M)
        return [partial(torch.matmul, x, w) for w in self.dense]


def by_rows(layer: Layer, rows: Iterable[int], steps: Mapping[str, Steps]) -> Rows:
    """The time of each for each number of rows, printed as it comes."""
    found: Rows = []
    for M in rows:
        row = {"M": M, **{name: median_us(make(M)) for name, make in steps.items()}}
        found.append(row)
        print(layer.N, layer.K, {k: round(v, 2) for k, v in row.items()}, flush=True)
    return found


def table(layer: Layer) -> Rows:
    steps = {
        "wna16_linear": layer.linear,
        "awq_gemm": lambda M: layer.awq_gemm(M, 64),
        "dense": layer.matmul,
    }
    return by_rows(layer, ROWS, steps)


def crossing(layer: Layer) -> Rows:
    steps = {
        "few rows": lambda M: layer.linear(M, M),
        "dequantized": lambda M: layer.linear(M, 0),
        "awq few rows": lambda M: layer.awq_gemm(M, M),
        "awq dequantized": lambda M: layer.awq_gemm(M, 0),
        "dense": layer.matmul,
    }
    return by_rows(layer, (16, 32, 48, 64, 96, 128, 192, 256), steps)


def marlin_crossing(layer: Layer) -> Rows:
    steps = {
        "kernel": layer.marlin,
        "dequantized": layer.marlin_dequantized,
        "dense": layer.matmul,
    }
    return by_rows(layer, (64, 128, 192, 256, 384, 512, 768, 1024, 2048), steps)


def sweep(layer: Layer) -> Rows:
    rows = []
    for M in (1, 8, 16, 64):
        found = []
        for kind in ("gptq", "awq"):
            for columns in (1, 2, 4, 8):
                for k_warps in (1, 2, 4, 8, 16):
                    if not 4 <= columns * k_warps <= 16:
                        continue
                    for split in (1, 2, 4, 8):
                        division = (columns, k_warps, split)
                        steps = (
                            layer.small_m(M, *division)
                            if kind == "gptq"
                            else layer.awq_gemm(M, 64, *division)
                        )
                        found.append((median_us(steps, 7), kind, division))
        for kind in ("gptq", "awq"):
            best = sorted(f for f in found if f[1] == kind)[:5]
            print(layer.N, layer.K, M, kind, [(round(t, 2), d) for t, _, d in best], flush=True)
        rows += [{"M": M, "kind": kind, "division": d, "us": t} for t, kind, d in found]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    what = parser.add_mutually_exclusive_group()
    for flag, function, text in (
        ("sweep", sweep, "every division of the work, M <= 64"),
        ("crossing", crossing, "few rows' kernel or dequantized, by M"),
        ("marlin", marlin_crossing, "the same of Marlin's layout"),
    ):
        what.add_argument(
            f"--{flag}", action="store_const", dest="measure", const=function, help=text
        )
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    args = parser.parse_args()
    library.load()
    measure = args.measure or table
    speed = bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {speed / 1e12:.2f} TB/s")
    results = []
    for N, K in SHAPES:
        layer = Layer(N, K, getattr(torch, args.dtype))
        floor = layer.bytes / speed * 1e6
        print(f"{N} x {K}: floor {floor:.1f} us")
        results.append({"N": N, "K": K, "floor_us": floor, "rows": measure(layer)})
        del layer
    document = {
        "what": measure.__name__,
        "environment": environment("qcore-cuda"),
        "device": torch.cuda.get_device_name(),
        "bytes_per_second": speed,
        "dtype": args.dtype,
        "group_size": GROUP,
        "shapes": results,
    }
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
