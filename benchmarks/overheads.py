"""What qcore itself costs: importing it, choosing a kernel cold and warm, calling a layer.

A call's cost is that of a layer of 32 x 32, where there is next to nothing to compute: module,
kernel, dispatcher, checks, the memory of the result. Beside it stand 640 x 640 and torch's layers.

python benchmarks/overheads.py [--out benchmarks/results/overheads.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import qcore
import torch
from environment import environment
from qcore.quantization.base import CanonicalLinear
from qcore.quantization.linear import QuantizedLinear
from qcore.testing import random_tensors

REPEATS = 15
IMPORT = "import time, torch; t = time.perf_counter(); import qcore; print(time.perf_counter() - t)"
SELECT = IMPORT.replace("import qcore;", "import qcore.selection;")


def in_a_new_process(code: str) -> float:
    """Median seconds that ``code`` prints."""
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(REPEATS)
    )


def config(N: int) -> qcore.MPLinearLayerConfig:
    """A common layer, made anew as a loader would."""
    return qcore.MPLinearLayerConfig(
        (4096, N), (4096, N), qcore.scalar_types.uint4b8, torch.bfloat16, 128, False
    )


def timed(layers: range) -> float:
    """Microseconds to make and decide one layer."""
    start = time.perf_counter()
    for N in layers:
        qcore.select(config(N))
    return (time.perf_counter() - start) / len(layers) * 1e6


def layer_of(kind: str, size: int, dtype: torch.dtype) -> torch.nn.Module:
    """A layer of ``size`` inputs and outputs, with the kernel that qcore selects for it."""
    if kind == "torch":
        return torch.nn.Linear(size, size, bias=False, dtype=dtype)
    shape = (size, size)
    if kind == "int8":
        made: Any = qcore.Int8ScaledMMLinearLayerConfig(
            False, True, True, weight_shape=shape, input_dtype=dtype
        )
    else:
        made = qcore.MPLinearLayerConfig(shape, shape, qcore.scalar_types.uint4b8, dtype, 32, False)
    settings = qcore.Settings(approximate=kind == "int4 int8")
    return QuantizedLinear(CanonicalLinear(made, random_tensors(made)), settings=settings)


def call_times(dtype: torch.dtype, repeats: int = 200, calls: int = 100) -> dict[str, float]:
    """Microseconds of a call with one row, by layer; medians of interleaved rounds."""
    layers = {
        f"{kind}, {size} x {size}": (layer_of(kind, size, dtype), torch.randn(1, size).to(dtype))
        for size in (32, 640)
        for kind in ("int4", "int4 int8", "int8", "torch")
    }
    times: dict[str, list[float]] = {name: [] for name in layers}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, (layer, x) in layers.items():
                start = time.perf_counter()
                for _ in range(calls):
                    layer(x)
                times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    qcore.select(config(8))
    first = (time.perf_counter() - start) * 1e3
    layers = range(64, 64 + 500)
    cold = timed(layers)
    warm = statistics.median(timed(layers) for _ in range(REPEATS))
    result: dict[str, Any] = {
        "environment": environment("pluggy"),
        "import_qcore_ms": in_a_new_process(IMPORT) * 1e3,
        "import_selection_ms": in_a_new_process(SELECT) * 1e3,
        "first_selection_ms": first,
        "cold_selection_us": cold,
        "warm_selection_us": warm,
    }
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name:<32} {value:10.2f}")
    for threads in dict.fromkeys((1, torch.get_num_threads())):
        torch.set_num_threads(threads)
        calls = {name: call_times(getattr(torch, name)) for name in ("float32", "bfloat16")}
        result[f"call_us_{threads}_threads"] = calls
        for dtype, times in calls.items():
            for name, value in times.items():
                print(f"call, {threads} threads, {dtype}, {name:<24} {value:8.2f} us")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
