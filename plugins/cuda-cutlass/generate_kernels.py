#!/usr/bin/env python3
"""Generates the kernels for weights in Marlin's layout, for some architectures.

    python generate_kernels.py "7.5,8.0,8.6,8.9,9.0" build/marlin
    python generate_kernels.py "9.0" --for-checkpoint path/to/checkpoint --plan

Writes sm75_, sm80_ and sm89_kernel_*.cu and kernel_selector.h, the same bytes for the same
arguments; a file that is right already is not touched. The build does this in its own folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from qcore_cuda.marlin import generate  # noqa: E402
from qcore_cuda.marlin.instances import (  # noqa: E402
    QUANT_CONFIGS,
    SETS,
    THREAD_CONFIGS,
    THREAD_M_BLOCKS,
    Instance,
    instances,
    parse_archs,
)

__all__ = [
    "QUANT_CONFIGS",
    "THREAD_CONFIGS",
    "THREAD_M_BLOCKS",
    "generate_new_kernels",
    "remove_old_kernels",
]

FOLDER = ROOT / "build" / "marlin"
"""Where files go if no folder is given; git ignores it."""


def remove_old_kernels(folder: Path = FOLDER) -> None:
    """Delete the generated files of ``folder``, and nothing else."""
    generate.remove_old_kernels(folder)


def generate_new_kernels(folder: Path = FOLDER, chosen: list[Instance] | None = None) -> list[Path]:
    """Write the sources of ``chosen`` (by default all kernels of SM80 and SM90) into ``folder``."""
    return generate.generate_new_kernels(folder, instances((80, 90)) if chosen is None else chosen)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 for wrong arguments."""
    names = ", ".join(config["name"] for config in QUANT_CONFIGS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archs", metavar="ARCHS", help='compute capabilities: "7.5,8.0,9.0"')
    parser.add_argument(
        "out", metavar="OUT", nargs="?", type=Path, default=FOLDER,
        help="the folder for the files (default: build/marlin beside this script)",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="of_set", choices=SETS, default="all",
        help="all; the default of a wheel (one tile for each number of rows); or the few of ci",
    )  # fmt: skip
    parser.add_argument("--schemes", default="", help=f"only these, separated by commas: {names}")
    parser.add_argument(
        "--for-checkpoint", metavar="PATH", type=Path,
        help="only the schemes of this checkpoint's layers; needs qcore",
    )  # fmt: skip
    parser.add_argument(
        "--plan", action="store_true", help="print what would be built, and write nothing"
    )
    given = parser.parse_args(arguments)
    try:
        archs = parse_archs(given.archs)
        chosen_names = [name.strip() for name in given.schemes.split(",") if name.strip()] or None
        chosen = instances(archs, chosen_names, given.of_set)
        if given.for_checkpoint is not None:
            from qcore_cuda.marlin.checkpoint import schemes_of_checkpoint

            wanted = schemes_of_checkpoint(given.for_checkpoint, archs)
            chosen = [instance for instance in chosen if instance.scheme in wanted]
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    print(generate.plan_of(chosen, archs))
    if not given.plan:
        generate_new_kernels(given.out, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
