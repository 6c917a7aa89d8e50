"""qcore's CPU kernels against torch's float linear, and both against what the memory allows.

    python benchmarks/cpu_linear.py [--quick] [--threads N] [--dtype float32] [--out FILE.json]

Every contender gets the same activations in the same run: rounds are interleaved, the median is
kept. There are as many copies of each weight as it takes to exceed the caches, used in turn, so
that M=1 reads memory. The bandwidth is that of summing a large float32 tensor in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qcore
import torch
from environment import environment
from qcore.kernels import process_weights
from qcore.numerics.dequantize import dequantize_weight
from qcore.testing import make_layer, random_tensors

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336), (640, 640), (2048, 640)]
QUICK_SHAPES = [(4096, 4096), (640, 2048)]
ROWS = [1, 4, 16, 64, 256]
CACHE_BYTES = 96 << 20
Step = Callable[[torch.Tensor], torch.Tensor]


def configs(N: int, K: int, dtype: torch.dtype) -> dict[str, Any]:
    """The layers that are measured, by name."""
    return {
        "int4-g128": qcore.MPLinearLayerConfig(
            (K, N), (K, N), qcore.scalar_types.uint4b8, dtype, 128, False
        ),
        "int8": qcore.Int8ScaledMMLinearLayerConfig(
            False, True, True, weight_shape=(N, K), input_dtype=dtype
        ),
    }


def quantized(config: Any, copies: int) -> tuple[list[Step], int, str, torch.Tensor]:
    """Steps over ``copies`` layers, bytes of one, the kernel's name, the float weight."""
    kernel_class = qcore.select(config).kernel_class
    steps, size, weight = [], 0, torch.empty(0)
    for seed in range(copies):
        tensors = random_tensors(config, seed=seed)
        if seed == 0:
            weight = dequantize_weight(config, tensors)
        layer = make_layer(config, tensors)
        kernel = kernel_class.from_config(config)
        process_weights(kernel, layer)
        size = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
        steps.append(lambda x, k=kernel, m=layer: k.apply_weights(m, x))
    return steps, size, kernel_class.__name__, weight


def dense(weight: torch.Tensor, copies: int) -> list[Step]:
    """Steps over ``copies`` of a float weight."""
    weights = [weight.clone() for _ in range(copies)]
    return [lambda x, w=w: torch.nn.functional.linear(x, w) for w in weights]


def copies_for(size: int) -> int:
    """How many weights of ``size`` bytes exceed the caches."""
    return max(2, min(64, -(-CACHE_BYTES // size)))


def measure(
    contenders: dict[str, tuple[list[Step], torch.Tensor]], budget: float
) -> dict[str, float]:
    """Median seconds of a step, by contender, over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for steps, x in contenders.values():
            for step in steps[:2]:
                step(x)
        start, turn = time.perf_counter(), 0
        while time.perf_counter() - start < budget or turn < 5:
            for name, (steps, x) in contenders.items():
                step = steps[turn % len(steps)]
                begin = time.perf_counter()
                step(x)
                times[name].append(time.perf_counter() - begin)
            turn += 1
    return {name: statistics.median(values) for name, values in times.items()}


def bandwidth() -> float:
    """Bytes a second of reading memory in order."""
    big = torch.ones(64 << 20)
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        big.sum()
        seconds.append(time.perf_counter() - begin)
    return big.nbytes / statistics.median(seconds)


def rows_of(
    N: int, K: int, dtype: torch.dtype, budget: float, rows: list[int]
) -> list[dict[str, Any]]:
    """One result for each layer, M and contender."""
    results = []
    for scheme, config in configs(N, K, dtype).items():
        probe = quantized(config, 1)
        size, name, weight = probe[1:]
        ours = quantized(config, copies_for(size))[0]
        others = {
            f"torch {str(t).removeprefix('torch.')}": weight.to(t)
            for t in (torch.float32, torch.bfloat16)
        }
        floats = {label: dense(w, copies_for(w.nbytes)) for label, w in others.items()}
        for M in rows:
            x = torch.randn(M, K).to(dtype)
            contenders = {name: (ours, x)}
            contenders |= {label: (s, x.to(others[label].dtype)) for label, s in floats.items()}
            exact = x.double() @ weight.double().t()
            for label, seconds in measure(contenders, budget).items():
                steps, given = contenders[label]
                error = (steps[0](given).double() - exact).norm() / exact.norm()
                bytes_read = size if label == name else others[label].nbytes
                results.append(
                    {
                        "scheme": scheme,
                        "N": N,
                        "K": K,
                        "M": M,
                        "contender": label,
                        "us": seconds * 1e6,
                        "weight_gb_per_s": bytes_read / seconds / 1e9,
                        "gflop_per_s": 2 * M * N * K / seconds / 1e9,
                        "relative_error": float(error),
                    }
                )
    return results


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, shorter rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--out", type=Path, help="write JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    limit = bandwidth()
    print(f"memory: {limit / 1e9:.1f} GB/s with {args.threads} threads")
    heading = f"{'scheme':<10} {'N':>6} {'K':>6} {'M':>4}  {'contender':<30}"
    print(f"{heading} {'us':>9} {'GB/s':>7} {'GFLOP/s':>8} {'error':>8}")
    results = []
    for N, K in QUICK_SHAPES if args.quick else SHAPES:
        for row in rows_of(N, K, dtype, 0.3 if args.quick else 1.0, ROWS):
            results.append(row)
            print(
                f"{row['scheme']:<10} {N:>6} {K:>6} {row['M']:>4}  {row['contender']:<30}"
                f" {row['us']:>9.1f} {row['weight_gb_per_s']:>7.1f} {row['gflop_per_s']:>8.1f}"
                f" {row['relative_error']:>8.1e}",
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "environment": environment("qcore-cpu"),
            "dtype": args.dtype,
            "memory_gb_per_s": limit / 1e9,
            "results": results,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
