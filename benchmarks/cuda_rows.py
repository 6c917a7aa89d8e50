"""How the time of a product grows with its rows: numbers that tiles divide, and those in between.

    python benchmarks/cuda_rows.py OUT.json [--beside EARLIER.json]
    python benchmarks/cuda_rows.py --from OUT.json --plot FILE.png

qcore's own choice of kernel for int4 weights (groups of 128, bfloat16), FP8 with scales by row and
FP8 with scales by block, timed as `cuda_timing.py` says. With ``--beside`` the runs of an earlier
file come along, so that two versions can be compared.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))  # N, K
ROWS = (1, 8, 9, 16, 17, 24, 32, 33, 40, 48, 64, 65, 80, 96, 128, 129, 160, 192, 256, 257, 320)
ROWS += (384, 512, 513, 640, 768, 1024)
GROUP = 128
KINDS = ("int4", "fp8", "fp8 block")


def measure() -> list[dict[str, Any]]:
    """The microseconds of each kind, shape and number of rows."""
    import torch
    from cuda_scaled_mm import Layer
    from cuda_timing import Step, copies_of, medians_us
    from qcore_cuda import library

    library.load()
    ops = torch.ops.qcore_cuda
    results: list[dict[str, Any]] = []
    for N, K in SHAPES:
        layer = Layer(N, K, torch.float8_e4m3fn)
        form = (K // 64, N // 32, 256)  # words of lanes, as a layer has them on SM90
        words = [
            torch.randint(-(2**31), 2**31 - 1, form, dtype=torch.int32, device="cuda")
            for _ in range(copies_of(N * K // 2, 24))
        ]
        scales = (torch.rand(K // GROUP, N, device="cuda") / 100).to(torch.bfloat16)
        rest = (scales, None, None, None, None, 4, 8, GROUP, K, N)
        for M in ROWS:
            wide = torch.randn(M, K, device="cuda").to(torch.bfloat16)
            x = layer.activations(M)
            of_rows = torch.rand(K // 128, (M + 3) // 4 * 4, device="cuda").t()[:M]  # as quantized
            out = torch.empty(M, N, dtype=torch.bfloat16, device="cuda")
            by_row = (x["scale"], layer.scale, None)
            by_block = (of_rows, layer.block_scale, None)
            product = ops.cutlass_scaled_mm
            steps: dict[str, list[Step]] = {
                "int4": [partial(ops.wna16_linear, wide, w, *rest) for w in words],
                "fp8": [partial(product, out, x["a"], w, *by_row) for w in layer.weights],
                "fp8 block": [partial(product, out, x["a"], w, *by_block) for w in layer.weights],
            }
            us = {kind: round(time, 2) for kind, time in medians_us(steps, 5).items()}
            results.append({"N": N, "K": K, "M": M, "us": us})
            shown = "  ".join(f"{kind} {time:7.2f}" for kind, time in us.items())
            print(f"{N:6d} x {K:5d}  M {M:5d}  {shown}", flush=True)
    return results


def plot(runs: list[dict[str, Any]], file: Path) -> None:
    """Time over rows, an axis for each kind and shape, a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(KINDS), len(SHAPES), figsize=(13, 9), sharex=True)
    for line, kind in zip(axes, KINDS, strict=True):
        for axis, (N, K) in zip(line, SHAPES, strict=True):
            for run in runs:
                here = [r for r in run["results"] if (r["N"], r["K"]) == (N, K)]
                times = [r["us"][kind] for r in here]
                label = run["environment"]["commit"]
                axis.plot([r["M"] for r in here], times, marker=".", label=label)
            axis.set(xscale="log", yscale="log", title=f"{kind}, {N} x {K}")
            axis.set_xticks([1, 8, 16, 32, 64, 128, 256, 512, 1024])
            axis.xaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("rows (M)")
    for axis in axes[:, 0]:
        axis.set_ylabel("microseconds")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure, print, write JSON; or plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    parser.add_argument("--beside", type=Path, help="a file whose runs are put before this one")
    parser.add_argument("--from", type=Path, dest="source", help="plot this file, measure nothing")
    parser.add_argument("--plot", type=Path, help="write a plot here, a PNG")
    args = parser.parse_args()
    if args.source:
        runs = json.loads(args.source.read_text(encoding="utf-8"))["runs"]
    else:
        import torch
        from environment import environment

        about = {"environment": environment("qcore-cuda"), "device": torch.cuda.get_device_name()}
        runs = [{**about, "results": measure()}]
        if args.beside:
            runs = [*json.loads(args.beside.read_text(encoding="utf-8"))["runs"], *runs]
        if args.output:
            args.output.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(runs, args.plot)


if __name__ == "__main__":
    main()
