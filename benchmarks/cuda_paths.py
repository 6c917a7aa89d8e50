"""Which kernel of qcore-cuda is fastest for an 8-bit product: measure, and write the table of it.

    python benchmarks/cuda_paths.py OUT.json            on a GPU: time every kernel
    python benchmarks/cuda_paths.py --from IN.json --table FILE.h     write the table of a run
    python benchmarks/cuda_paths.py OUT.json --from IN.json --others-from BEFORE.json
                                    a run of some problems and, of the others, one before it

For each kind of scales, shape of weight and number of rows every kernel ("path") is timed as
`cuda_scaled_mm.py` times contenders. The table, `plugins/cuda-cutlass/csrc/scaled_mm_path_table.h`,
has these times. For another problem `scaled_mm_choice.h` takes those of the weight that is most
alike, in proportion to how that path's tiles fit the one and the other. With the table comes how
much longer what is chosen takes than the fastest: at these weights, and at each of them by the
times of the others.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from cuda_plans import up

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
ROUNDS, NEAR = 5, 0.97
FIRST = ("sm90_columns", "t128x128x128_2x1_pingpong")
PROCESSORS, BEGIN, EACH_TILE, BYTES_PER_US = 132, 3.0, 0.5, 4.2e6
HAND, HAND_ROW = 3.0, 0.02  # us: to hand over sums of a tile, and for each of its rows
EMPTY_ROW = 2e-5  # us for an input of a row beyond the last, where a kernel has zeros come for it

Row = dict[str, Any]


def measure(
    shapes: Iterable[tuple[int, int]],
    rows: Iterable[int],
    kinds: Iterable[str],
    keep: Callable[[list[Row]], None],
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
        for kind in kinds:
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


def tile_of(path: str) -> tuple[int, int, int, int]:
    """Rows and columns of a path's tiles and how many make a cluster; 0, 0, 1, 1 if it has none."""
    found = re.match(r"t(\d+)x(\d+)x\d+_(\d+)x(\d+)_[a-z]+(?:_promoted)?(_swapped)?$", path)
    if found:
        rows, columns, down, across = map(int, found.groups()[:4])
        return (columns, rows, across, down) if found[5] else (rows, columns, down, across)
    if found := re.match(r"sm90_(\d+)(_shared)?$", path):
        return int(found[1]), 128, 1, 1 if found[1] == "64" else 2
    return 0, 0, 1, 1


def shares(path: str) -> bool:
    """Whether a tile may be several processors'."""
    return path.endswith("_shared")


def brings_zeros(path: str) -> bool:
    """Whether rows beyond the last come as zeros, slowly: in CUTLASS's kernels."""
    return path.startswith("t")


def share(tiles: int, clusters: int, steps: int) -> tuple[int, int]:
    """As `csrc/scaled_mm_share.h` has it: tiles not shared, and clusters that share the others."""
    left = tiles % clusters
    if left == 0:
        return tiles, 0
    if tiles < clusters:
        equal = min(clusters // tiles, 4, steps // 4) * tiles
        use_all = clusters < 4 * tiles and equal * 20 < clusters * 17
        sharers = clusters if use_all and clusters * 4 <= tiles * steps else equal
        return (0, sharers) if sharers > tiles else (tiles, 0)
    whole = tiles - left - (clusters if left * 4 < clusters else 0)
    return (tiles, 0) if (tiles - whole) * steps < clusters * 4 else (whole, clusters)


def turns(path: str, N: int, K: int, M: int) -> tuple[float, float]:
    """Tiles that a processor does, one after another; and microseconds to hand over sums."""
    rows, columns, down, across = tile_of(path)
    if not rows:
        return 0.0, 0.0
    tiles, each = int(up(M, rows * down) * up(N, columns * across)), down * across
    if shares(path):
        clusters = PROCESSORS // each
        whole, sharers = share(tiles, clusters, int(up(K, 128)))
        if sharers:
            return whole / clusters + (tiles - whole) / sharers, HAND + HAND_ROW * rows
    return float(up(tiles * each, PROCESSORS)), 0.0


def rates(results: list[Row]) -> dict[tuple[str, str], float]:
    """Of each kind and path: microseconds that a tile takes for an input, nearly the least seen."""
    seen: dict[tuple[str, str], list[float]] = {}
    for row in results:
        for path, us in row["us"].items():
            count, hand = turns(path, row["N"], row["K"], row["M"])
            if count:
                rate = (us - BEGIN - hand - count * EACH_TILE) / (count * row["K"])
                seen.setdefault((row["kind"], path), []).append(rate)
    return {key: sorted(values)[len(values) // 50] for key, values in seen.items()}


def modelled(path: str, rate: float, N: int, K: int, M: int) -> float:
    """As `csrc/scaled_mm_choice.h` has it."""
    count, hand = turns(path, N, K, M)
    work = count * (K * rate + EACH_TILE)
    size = (N * K + M * K + 2 * M * N) / BYTES_PER_US
    zeros = 0.0
    if brings_zeros(path):
        rows, columns, down, across = tile_of(path)
        empty = int(up(M, rows * down)) * rows * down - M
        each = int(up(int(up(N, columns * across)) * across, PROCESSORS))
        zeros = EMPTY_ROW * empty * K * each
    return float(BEGIN + hand + zeros + (work**4 + size**4) ** 0.25)


class Choice:
    """What the kernels choose with these times."""

    def __init__(self, results: list[Row]) -> None:
        self.rates = rates(results)
        self.weights = list(dict.fromkeys((r["N"], r["K"]) for r in results))
        self.rows = sorted({r["M"] for r in results})
        self.us = {(r["kind"], r["N"], r["K"], r["M"]): r["us"] for r in results}

    def paths(self, kind: str) -> list[str]:
        """Those that are worth a place: not what other devices have. Ties go to the first."""
        found = dict.fromkeys(p for key, us in self.us.items() if key[0] == kind for p in us)
        own = [path for path in found if path not in ("skinny", "portable")]
        return sorted(own, key=lambda path: FIRST.index(path) if path in FIRST else len(FIRST))

    def path(self, kind: str, N: int, K: int, M: int) -> str:
        """Of this problem."""
        like = min(self.weights, key=lambda w: _ratio(N, w[0]) * _ratio(K, w[1]))
        rows = next((r for r in self.rows if r >= M), self.rows[-1])
        times = self.us[kind, like[0], like[1], rows]

        def expected(path: str) -> float:
            rate = self.rates.get((kind, path), 0.0)
            here, there = modelled(path, rate, N, K, M), modelled(path, rate, *like, rows)
            return float(times[path]) * here / there

        best, *others = (p for p in self.paths(kind) if p in times)
        for path in others:
            if expected(path) < NEAR * expected(best):
                best = path
        return best


def _ratio(a: int, b: int) -> float:
    return max(a, b) / min(a, b)


def regrets(results: list[Row], left_out: bool) -> dict[str, list[float]]:
    """By kind: how much longer what is chosen takes than the fastest.

    If ``left_out``, every weight is chosen for by the times of the others alone.
    """
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for N, K in dict.fromkeys((r["N"], r["K"]) for r in results):
        known = [r for r in results if not left_out or (r["N"], r["K"]) != (N, K)]
        choice = Choice(known)
        for row in (r for r in results if (r["N"], r["K"]) == (N, K)):
            us = row["us"]
            path = choice.path(row["kind"], N, K, row["M"])
            found[row["kind"]].append(us.get(path, 2 * min(us.values())) / min(us.values()) - 1)
    return found


def with_others(document: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A run, and what an earlier one has of problems that it has not, in the order of that one."""
    measured = {_problem(row): row for row in document["results"]}
    results = [measured.pop(_problem(row), row) for row in before["results"]]
    return document | {"results": [*results, *measured.values()]}


def _problem(row: Row) -> tuple[str, int, int, int]:
    return row["kind"], row["N"], row["K"], row["M"]


def commits_of(results: list[Row]) -> dict[str, str]:
    """What was measured, by kind."""
    found: dict[str, list[str]] = {}
    for row in results:
        found.setdefault(row["kind"], []).append(row["commit"])
    return {kind: " and ".join(dict.fromkeys(commits)) for kind, commits in found.items()}


def table(document: dict[str, Any]) -> str:
    """The header's text."""
    choice = Choice(document["results"])
    torch = document["environment"]["versions"]["torch"]
    by_kind = commits_of(document["results"])
    commits = ", ".join(f"{kind} {commit}" for kind, commit in by_kind.items())
    weights = ", ".join(f"{{{N}, {K}}}" for N, K in choice.weights)
    lines = [
        "// Made by benchmarks/cuda_paths.py; do not edit. Every kernel's time for some problems,",
        f"// measured on an {document['device']} with torch {torch}, commits: {commits}.",
        "#pragma once",
        "",
        "#include <string_view>",
        "",
        "namespace qcore_cuda::choice {",
        "",
        "struct Path {",
        "  std::string_view name;",
        "  int rows, columns, cluster_rows, cluster_columns;  // of a tile, tiles of a cluster",
        "  bool shared;  // by several processors",
        "  bool brings_zeros;  // for rows beyond the last",
        "  double us_per_input;  // of a tile",
        "};",
        "struct Weight {",
        "  int n, k;",
        "};",
        "",
        f"constexpr int kProcessors = {PROCESSORS};",
        f"constexpr double kBegin = {BEGIN:g}, kEachTile = {EACH_TILE:g};  // us",
        f"constexpr double kHand = {HAND:g}, kHandRow = {HAND_ROW:g};  // us",
        f"constexpr double kEmptyRow = {EMPTY_ROW:g};  // us",
        f"constexpr double kBytesPerUs = {BYTES_PER_US:g}, kNear = {NEAR:g};",
        f"constexpr int kWeightCount = {len(choice.weights)}, kRowCount = {len(choice.rows)};",
        f"inline constexpr Weight kWeights[] = {{{weights}}};",
        f"inline constexpr int kRows[] = {{{', '.join(map(str, choice.rows))}}};",
        "",
    ]
    for kind in KINDS:
        name, paths = "".join(word.capitalize() for word in kind.split()), choice.paths(kind)
        lines.append(f"inline constexpr Path k{name}Paths[] = {{")
        for path in paths:
            facts = (str(fact).lower() for fact in (shares(path), brings_zeros(path)))
            tile = ", ".join((*map(str, tile_of(path)), *facts))
            rate = choice.rates.get((kind, path), 0.0)
            lines.append(f'    {{"{path}", {tile}, {rate:.4g}}},')
        lines += ["};", "// Microseconds of each path; 0: not for so many rows."]
        lines.append(f"inline constexpr float k{name}Times[][kRowCount][{len(paths)}] = {{")
        for N, K in choice.weights:
            lines.append("    {")
            for rows in choice.rows:
                us = choice.us[kind, N, K, rows]
                lines.append("        {" + ", ".join(f"{us.get(p, 0):.5g}" for p in paths) + "},")
            lines.append("    },")
        lines += ["};", ""]
    return "\n".join([*lines, "}  // namespace qcore_cuda::choice", ""])


def main() -> None:
    """Measure and write JSON, or write the table of a JSON."""
    from cuda_timing import shape_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="NxK")
    parser.add_argument(
        "--from", type=Path, dest="source", help="take these results, measure nothing"
    )
    parser.add_argument(
        "--others-from", type=Path, help="take problems that --from has not from this earlier run"
    )
    parser.add_argument("--table", type=Path, help="write the table here, a C++ header")
    args = parser.parse_args()
    if args.others_from and not args.source:
        parser.error("--others-from needs --from")
    if args.source:
        document = json.loads(args.source.read_text(encoding="utf-8"))
        if args.others_from:
            before = json.loads(args.others_from.read_text(encoding="utf-8"))
            document = with_others(document, before)
        if args.output:
            args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
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
            commit = document["environment"]["commit"]
            document["results"] = [{"commit": commit, **row} for row in results]
            if args.output:
                args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

        measure(args.shapes, args.rows, args.kinds, keep)
    if not args.table:
        return
    args.table.write_text(table(document), encoding="utf-8")
    for left_out in (False, True):
        print("each weight by the others' times" if left_out else "by all times")
        for kind, values in regrets(document["results"], left_out).items():
            mean, most = sum(values) / len(values), max(values)
            print(f"  {kind:9s}  {len(values)} problems: {mean:.1%} longer, at worst {most:.0%}")


if __name__ == "__main__":
    main()
