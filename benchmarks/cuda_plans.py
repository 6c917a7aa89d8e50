"""How SM90's kernels for packed weights divide their work: every division's time; the fit.

    python benchmarks/cuda_plans.py plans.json              # measures, on an H200
    python benchmarks/cuda_plans.py plans.json --fit [60]   # constants of csrc/w4_mid_m_plan.h
    python benchmarks/cuda_plans.py many.json --many        # the kernel for many rows, measured

A division is the warps of a block by columns, the parts of K that blocks of a cluster have, and the
warps that take turns in a part. Each is timed as `cuda_timing.py` says, 5 rounds. ``chosen`` is
what the kernel takes by itself, ``many`` the kernel for many rows, ``gptq order`` the same as
``chosen`` with words that lie as GPTQ's do and not as lanes read them. Of the kernel for many rows
a division is the rows and the columns of a tile and the parts of K (0: pairs of blocks take whole
tiles; less: those without a tile help with so many times 64 inputs of the last ones).

The fit searches constants at random for which the divisions of least cost are the fastest ones. Its
`Problem.cost` is the cost of `w4_mid_m_plan.h`; a test compares what the two choose.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))
MORE_SHAPES = ((5120, 5120), (6144, 4096), (8192, 8192), (11008, 4096), (2560, 2560))
MORE_SHAPES += ((3072, 8192), (1024, 4096), (13824, 5120), (5120, 13824), (18944, 3584))
SHAPES_OF_8_BITS = (*SHAPES, (5120, 5120))
ROWS, MORE_ROWS = (1, 16, 24, 32, 48, 64), (1, 16, 32, 64)
GROUP, PROCESSORS = 128, 132
COLUMN_WARPS, PARTS = range(1, 9), (1, 2, 4, 8)
START = (0.707, 55.4, 11.2, 310.0, 42.5, 805.0, 402.0, 33.5, 0.383, 0.555, 1210.0, 3.51, 41.7)
CLOCK = 1800  # cycles in a microsecond, about
TILES = ((64, 128), (128, 128), (128, 256), (256, 128))
ROWS_OF_MANY = (48, 64, 96, 128, 192, 256, 384, 512, 1024)
SHAPES_OF_MANY = (*SHAPES, (8192, 8192), (6144, 4096), (2048, 8192), (4096, 11008), (5120, 5120))
SHAPES_OF_MANY += ((10240, 8192), (34816, 5120), (5120, 17408), (18944, 3584), (37888, 3584))
SHAPES_OF_MANY += ((22016, 4096), (57344, 8192))


def turns_of(column_warps: int) -> int:
    """Warps that take turns, of a block that shares its processor."""
    return 1 if column_warps > 4 else 2 if column_warps > 2 else 4


def up(a: Any, b: Any) -> Any:
    """a / b, rounded up."""
    return (a + b - 1) // b


def row_tiles(M: int) -> int:
    """Tiles of 8 rows that a block has."""
    return 1 if M <= 8 else 2 if M <= 16 else 4 if M <= 32 else 8


def given(M: int, N: int, K: int, rows: int, columns: int, clusters: int) -> list[int]:
    """Times 64 inputs that pairs of blocks without a tile may take over from each that has most."""
    pairs = up(M, rows) * up(N, 2 * columns)
    rounds = up(pairs, clusters)
    owners = up(pairs, rounds)
    if owners == clusters:
        return []
    each = up(pairs - (rounds - 1) * owners, clusters - owners)
    most = min(rounds * up(K, 64) / (each + 1), up(K, 64) - 2)
    return sorted({int(most * part) // 2 * 2 for part in (0.5, 0.7, 0.8, 0.9)} - {0})


def divisions(M: int) -> list[tuple[int, int, int]]:
    """Warps by columns, parts, turns."""
    most = 15 if row_tiles(M) == 8 else 16
    return [
        (columns, parts, times * turns_of(columns))
        for columns in COLUMN_WARPS
        for parts in PARTS
        for times in (1, 2)
        if columns * times * turns_of(columns) <= most
    ]


@dataclass
class Problem:
    """A weight and a number of rows; its divisions, [count, 3], and their times."""

    N: int
    K: int
    M: int
    bits: int
    divisions: np.ndarray
    us: np.ndarray

    def allowed(self) -> np.ndarray:
        """Divisions that the kernel considers."""
        columns, parts, turns = self.divisions.T
        tiles, pieces = row_tiles(self.M), self._pieces()
        alone = (tiles == 8) | (columns * turns > 8)
        taken, words = pieces * turns, columns * pieces * turns * 64 * self.bits * 4
        scales = 2 * taken * columns * 64  # groups of 32 have the most
        stage = up(words + taken * 8 * tiles * 128 + scales, 128) * 128
        stage = up(stage + 2 * taken * columns * 4 * self.bits, 1024) * 1024
        room = np.where(alone, 225, 112) * 1024 - 1152
        times = turns // np.array([turns_of(c) for c in columns])
        whole = (parts * times == 1) | (2 * parts * 64 * turns * pieces <= self.K)
        return whole & (2 * stage <= room)

    def _pieces(self) -> int:
        return 2 if row_tiles(self.M) <= 4 and self.bits == 4 else 1

    def cost(self, c: np.ndarray) -> np.ndarray:
        """Cycles of each division with these constants."""
        columns, parts, turns = self.divisions.T
        tiles, pieces, words = row_tiles(self.M), self._pieces(), self.bits / 4
        at_a_time = np.where((tiles == 8) | (columns * turns > 8), 1, 2)
        blocks = up(self.N, 32 * columns) * parts * up(self.M, 8 * tiles)
        stages = up(up(self.K, 64 * turns * pieces), parts)
        each = up(blocks, PROCESSORS)
        rounds = up(each, at_a_time)
        share = np.maximum(c[0] * each, blocks / PROCESSORS)
        comes = share * np.maximum(c[1] * words, c[2] * (words + tiles / columns))
        warps = columns * turns * np.minimum(each, at_a_time)
        comes = comes * (1 + c[8] * np.maximum(0, 1 - warps / 16))
        all_pieces = stages * turns * pieces * columns
        issued = all_pieces * each * (c[11] * tiles + c[12] * words)
        alone = rounds * stages * pieces * (c[3] * words + c[4] * tiles)
        joined = np.where(parts == 1, 0, c[5] + c[6] * tiles * columns)
        sums = c[7] * tiles * columns * turns
        most = np.maximum(np.maximum(all_pieces * comes, issued), alone)
        return most + np.maximum(rounds, c[9] * each) * (c[10] + joined + sums)


def problems_of(results: list[dict[str, Any]]) -> list[Problem]:
    """The measured problems, with the divisions that the kernel considers."""
    found = []
    for row in results:
        times = {name: us for name, us in row["us"].items() if "/" in name}
        given = np.array([[int(part) for part in name.split("/")] for name in times])
        problem = Problem(
            row["N"], row["K"], row["M"], row["bits"], given, np.array(list(times.values()))
        )
        kept = problem.allowed()
        problem.divisions, problem.us = given[kept], problem.us[kept]
        found.append(problem)
    return found


def regrets(problems: list[Problem], c: np.ndarray) -> np.ndarray:
    """By how much the division of least cost is slower than the fastest."""
    return np.array([p.us[np.argmin(p.cost(c))] / p.us.min() - 1 for p in problems])


def loss(problems: list[Problem], c: np.ndarray) -> float:
    """What the fit makes small: regrets, large ones twice; a little, how wrong the cost is."""
    regret = regrets(problems, c)
    wrong = [np.abs(np.log(p.cost(c) / CLOCK / p.us)).mean() for p in problems]
    late = np.maximum(regret - 0.05, 0).sum()
    return float(0.6 * regret.sum() + 2 * late + regret.max() + 0.3 * np.mean(wrong))


def fit(problems: list[Problem], seconds: float) -> np.ndarray:
    """Constants, from those that there are."""
    random = np.random.default_rng(0)
    best = np.array(START)
    least, begin = loss(problems, best), time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        step = 0.4 * (1 - passed / seconds) + 0.02
        changed = random.random(len(best)) < 0.35
        tried = best * np.exp(random.normal(0, step, len(best)) * changed)
        tried = np.array([float(f"{value:.3g}") for value in tried])
        if (of_this := loss(problems, tried)) < least:
            best, least = tried, of_this
    return best


class Times:
    """The times of problems, which a file has as soon as they are taken."""

    def __init__(self, file: Path) -> None:
        import torch
        from environment import environment

        self.file = file
        device = torch.cuda.get_device_name()
        self.about = {"environment": environment("qcore-cuda"), "device": device}
        self.results: list[dict[str, Any]] = []

    def take(self, problem: dict[str, int], steps: dict[str, list[Any]]) -> None:
        """Time ``steps``: divisions, whose names have slashes, and others."""
        from cuda_timing import medians_us

        us = {name: round(time, 2) for name, time in medians_us(steps, 5).items()}
        self.results.append({**problem, "us": us})
        best = min((us[name], name) for name in us if "/" in name)
        others = "".join(f"  {name} {us[name]:6.2f}" for name in us if "/" not in name)
        about = "  ".join(f"{name} {value:5d}" for name, value in problem.items())
        print(f"{about}  fastest {best[0]:6.2f} ({best[1]}){others}", flush=True)
        self.file.write_text(json.dumps({**self.about, "results": self.results}, indent=1) + "\n")


def _form(N: int, K: int, bits: int) -> tuple[int, ...]:
    """Of words as a layer has them: of 4 bits, those of lanes."""
    return (K // 64, N // 32, 256) if bits == 4 else (K * bits // 32, N)


def measure(file: Path) -> None:
    """Time every division of every problem; write them."""
    import torch
    from cuda_timing import copies_of
    from qcore_cuda import library

    library.load()
    mid, many = torch.ops.qcore_cuda.wna16_mid_m, torch.ops.qcore_cuda.wna16_sm90
    times = Times(file)

    def shape(N: int, K: int, bits: int, rows: tuple[int, ...]) -> None:
        count = copies_of(N * K * bits // 8, 24)
        options = {"dtype": torch.int32, "device": "cuda"}
        form = _form(N, K, bits)
        words = [torch.randint(-(2**31), 2**31 - 1, form, **options)]
        words += [words[0].clone() for _ in range(count - 1)]
        scales = torch.rand(K // GROUP, N, device="cuda").to(torch.bfloat16) / 100
        rest = (scales, None, bits, 1 << (bits - 1), GROUP)
        for M in rows:
            x = torch.randn(M, K, device="cuda").to(torch.bfloat16)
            run = lambda op, i, *how: op(x, words[i], *rest, *how)  # noqa: B023, E731
            steps = {
                "/".join(map(str, d)): [partial(run, mid, i, 0, *d) for i in range(count)]
                for d in divisions(M)
                if d[1] * d[2] * 64 * 4 <= K
            }
            steps["chosen"] = [partial(run, mid, i) for i in range(count)]
            steps["many"] = [partial(run, many, i) for i in range(count)]
            if bits == 4:
                steps["gptq order"] = [partial(mid, x, w.view(K // 8, N), *rest) for w in words]
            times.take({"N": N, "K": K, "M": M, "bits": bits}, steps)

    for shapes, bits, rows in (
        (SHAPES, 4, ROWS),
        (MORE_SHAPES, 4, MORE_ROWS),
        (SHAPES_OF_8_BITS, 8, MORE_ROWS),
    ):
        for N, K in shapes:
            shape(N, K, bits, rows)


def measure_many(file: Path) -> None:
    """The same of the kernel for many rows."""
    import torch
    from cuda_timing import copies_of
    from qcore_cuda import library

    library.load()
    many = torch.ops.qcore_cuda.wna16_sm90
    times = Times(file)
    for N, K in SHAPES_OF_MANY:
        count = copies_of(N * K // 2, 24)
        options = {"dtype": torch.int32, "device": "cuda"}
        form = _form(N, K, 4)
        words = [torch.randint(-(2**31), 2**31 - 1, form, **options) for _ in range(count)]
        rest = ((torch.rand(K // GROUP, N, device="cuda") / 100).to(torch.bfloat16), None, 4, 8)
        for M in ROWS_OF_MANY:
            x = torch.randn(M, K, device="cuda").to(torch.bfloat16)
            steps = {
                "chosen": [partial(many, x, w, *rest, GROUP) for w in words],
                "gptq order": [partial(many, x, w.view(K // 8, N), *rest, GROUP) for w in words],
            }
            for rows, columns in TILES:
                tiles = up(M, rows) * up(N, columns)
                if (rows > 64 and rows >= 2 * M) or 8 * rows < M:
                    continue
                clusters = PROCESSORS if rows == 64 else PROCESSORS // 2
                helped = [-g for g in given(M, N, K, rows, columns, clusters)]
                for parts in (0, *range(2, 9), *helped):
                    blocks = tiles * parts
                    if blocks > (3 if rows == 64 else 1.5) * PROCESSORS or 256 * parts > K:
                        continue
                    division = (rows, columns, parts)
                    steps["/".join(map(str, division))] = [
                        partial(many, x, w, *rest, GROUP, *division) for w in words
                    ]
            times.take({"N": N, "K": K, "M": M, "bits": 4}, steps)


def report(problems: list[Problem], c: np.ndarray) -> None:
    """Print the constants, and what their choices cost."""
    regret = regrets(problems, c)
    print("constants", " ".join(f"{value:g}" for value in c))
    print(
        f"{len(problems)} problems: {(regret < 0.03).sum()} within 3 %, "
        f"on average {regret.mean():.1%}, at worst {regret.max():.1%}"
    )
    for i in np.argsort(-regret)[:6]:
        p = problems[i]
        names = ["/".join(map(str, p.divisions[j])) for j in (p.cost(c).argmin(), p.us.argmin())]
        shape = f"{p.N} x {p.K}, {p.bits} bits, M {p.M}"
        print(f"  {shape}: {names[0]} for {names[1]}, {regret[i]:.1%} more")


def main() -> None:
    """Measure, or fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="times of divisions, JSON")
    parser.add_argument(
        "--fit", type=float, nargs="?", const=60.0, metavar="SECONDS", help="fit to FILE's times"
    )
    parser.add_argument(
        "--many", action="store_true", help="measure the kernel for many rows in place of medium"
    )
    args = parser.parse_args()
    if args.many and args.fit is not None:
        parser.error("--many: there is no fit for the kernel for many rows; leave out --fit")
    if args.fit is None:
        (measure_many if args.many else measure)(args.file)
        return
    problems = problems_of(json.loads(args.file.read_text(encoding="utf-8"))["results"])
    report(problems, np.array(START))
    report(problems, fit(problems, args.fit))


if __name__ == "__main__":
    main()
