"""Which kernel of qcore-cuda is fastest for an 8-bit product: measure, and write the table of it.

    python benchmarks/cuda_paths.py OUT.json            on a GPU: time every kernel
    python benchmarks/cuda_paths.py --from IN.json --table FILE.h     write the table of a run

For each kind of scales, shape of weight and number of rows every kernel ("path") is timed as
`cuda_scaled_mm.py` times contenders. The table, `plugins/cuda-cutlass/csrc/scaled_mm_path_table.h`,
has the fastest path for each, where runs of rows with one answer are one entry. A path that is at
most 3 % slower than the fastest keeps the entry of fewer rows, so that noise makes no entries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

KINDS = ("fp8", "int8", "fp8 block")
SHAPES = (  # N, K
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (2048, 2048),
    (7168, 2048),
    (37888, 3584),
    (3584, 18944),
    (6144, 4096),
    (5120, 5120),
    (34816, 5120),
    (5120, 17408),
    (10240, 8192),
    (2560, 9728),
    (8192, 28672),
)
ROWS = (1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
NEAR = 1.03
ROUNDS = 5

Row = dict[str, Any]


def measure(
    shapes: Iterable[tuple[int, int]], rows: Iterable[int], keep: Callable[[list[Row]], None]
) -> None:
    """The microseconds of each path for each kind, shape and number of rows.

    ``keep`` is called with the results so far after each shape.
    """
    import torch
    from cuda_scaled_mm import Layer
    from cuda_timing import medians_us
    from qcore_cuda import ops

    found: list[Row] = []
    by = torch.ops.qcore_cuda.scaled_mm_by
    for N, K in shapes:
        for kind in KINDS:
            dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
            layer = Layer(N, K, dtype)
            for M in rows:
                x = layer.activations(M)
                out = torch.empty(M, N, dtype=torch.bfloat16, device="cuda")
                scales = (x["scale"], layer.scale)
                if kind == "fp8 block":
                    scales = (x["block_scale"], layer.block_scale)
                steps = {}
                for path in ops.scaled_mm_paths():
                    call = partial(_call, by, out, x["a"], scales, path)
                    try:
                        call(layer.weights[0])
                    except RuntimeError:
                        continue  # not for this kind, or not for so many rows
                    steps[path] = [partial(call, w) for w in layer.weights]
                if M > 64:
                    steps.pop("portable", None)  # for devices that have nothing better
                times = medians_us(steps, ROUNDS)
                found.append({"kind": kind, "N": N, "K": K, "M": M, "us": times})
                best = min(times, key=times.__getitem__)
                print(
                    f"{kind:9s} {N:6d} x {K:5d}  M {M:5d}  {times[best]:8.1f} us  {best}",
                    flush=True,
                )
        keep(found)


def _call(by: Any, out: Any, a: Any, scales: tuple[Any, Any], path: str, w: Any) -> None:
    by(out, a, w, *scales, None, None, None, path)


def choices(results: list[Row], kind: str, N: int, K: int) -> list[tuple[int, str]]:
    """(Up to so many rows, path), the last for all above."""
    rows = sorted((r for r in results if (r["kind"], r["N"], r["K"]) == (kind, N, K)), key=_rows)
    found: list[tuple[int, str]] = []
    for row in rows:
        times = row["us"]
        best = min(times, key=times.__getitem__)
        if found and times.get(found[-1][1], float("inf")) <= NEAR * times[best]:
            best = found[-1][1]
        if found and found[-1][1] == best:
            found.pop()
        found.append((row["M"], best))
    return found


def _rows(row: Row) -> int:
    return int(row["M"])


def table(document: dict[str, Any]) -> str:
    """The header's text."""
    results = document["results"]
    environment = document["environment"]
    torch, commit = environment["versions"]["torch"], environment["commit"]
    lines = [
        "// Made by benchmarks/cuda_paths.py; do not edit. The fastest kernel of each problem,",
        f"// measured on an {document['device']} with torch {torch}, commit {commit}.",
        "#pragma once",
        "",
        "namespace qcore_cuda {",
        "",
        "struct PathEntry {",
        "  int n, k;  // of the measured weight",
        "  int rows;  // up to so many; the last of a weight is for all above, too",
        "  const char* path;",
        "};",
        "",
    ]
    for kind in KINDS:
        name = "".join(word.capitalize() for word in kind.split())
        lines.append(f"inline constexpr PathEntry k{name}Paths[] = {{")
        for N, K in dict.fromkeys((r["N"], r["K"]) for r in results if r["kind"] == kind):
            lines += [
                f'    {{{N}, {K}, {rows}, "{path}"}},'
                for rows, path in choices(results, kind, N, K)
            ]
        lines += ["};", ""]
    return "\n".join([*lines, "}  // namespace qcore_cuda", ""])


def _shape(text: str) -> tuple[int, int]:
    N, K = text.split("x")
    return int(N), int(K)


def main() -> None:
    """Measure and write JSON, or write the table of a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--shapes", type=_shape, nargs="+", default=SHAPES, metavar="NxK")
    parser.add_argument(
        "--from", type=Path, dest="source", help="take these results, measure nothing"
    )
    parser.add_argument("--table", type=Path, help="write the table here, a C++ header")
    args = parser.parse_args()
    if args.source:
        document = json.loads(args.source.read_text(encoding="utf-8"))
    else:
        import torch
        from environment import environment
        from qcore_cuda import library

        library.load()
        document = {
            "environment": environment("qcore-cuda"),
            "device": torch.cuda.get_device_name(),
        }

        def keep(results: list[Row]) -> None:
            document["results"] = results
            if args.output:
                args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

        measure(args.shapes, args.rows, keep)
    if args.table:
        args.table.write_text(table(document), encoding="utf-8")


if __name__ == "__main__":
    main()
