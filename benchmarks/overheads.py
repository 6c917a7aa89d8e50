"""What qcore itself costs: importing it beside torch, choosing a kernel cold and warm.

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

import qcore
import torch
from environment import environment

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
    result = {
        "environment": environment("pluggy"),
        "import_qcore_ms": in_a_new_process(IMPORT) * 1e3,
        "import_selection_ms": in_a_new_process(SELECT) * 1e3,
        "first_selection_ms": first,
        "cold_selection_us": cold,
        "warm_selection_us": warm,
    }
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name:<22} {value:10.2f}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
