"""Compare `lane_layout.LAYOUTS` with AMD's matrix instruction calculator.

``python compare_lane_layouts.py FOLDER`` with a checkout of
https://github.com/ROCm/amd_matrix_instruction_calculator (needs ``tabulate``). Prints a line for
each matrix of each instruction, and ends with 1 where an entry differs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from lane_layout import LAYOUTS, Layout

_PLACE = re.compile(r"v(\d+)\{(\d+)\}(?:\.\[(\d+):(\d+)\])?$")


def places(folder: str, layout: Layout, matrix: str) -> Iterator[tuple[int, int, int, int]]:
    """(row, column, lane, element in the lane) of every entry, as the calculator says."""
    program = [sys.executable, "matrix_calculator.py", "-a", layout.calculator_arch]
    options = ["-i", layout.instruction, f"--{matrix}-matrix", "-R", "--csv"]
    if layout.wave == 32:
        options += ["-w", "32"]
    done = subprocess.run(program + options, cwd=folder, capture_output=True, text=True, check=True)
    lines = [line.split(",") for line in done.stdout.splitlines() if re.match(r"\d+,", line)]
    bits = 32 if matrix == "D" else layout.bits
    for row, *cells in lines:
        for column, cell in enumerate(filter(None, cells)):
            found = _PLACE.match(cell.strip())
            if not found:
                raise SystemExit(f"cannot read {cell!r}")
            element = int(found[1]) * (32 // bits) + int(found[4] or 0) // bits
            yield int(row), column, int(found[2]), element


def main(folder: str) -> int:
    wrong = 0
    for name, layout in LAYOUTS.items():
        for matrix, place in (("A", layout.a), ("B", layout.b), ("D", layout.d)):
            entries = list(places(folder, layout, matrix))
            bad = [e for e in entries if place(e[0], e[1]) != (e[2], e[3])]
            size = {"A": 16 * layout.k, "B": 16 * layout.k, "D": 256}[matrix]
            print(
                f"{name} {layout.instruction} {matrix}: {len(entries)} entries, {len(bad)} differ"
            )
            wrong += len(bad) + (len(entries) != size)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
