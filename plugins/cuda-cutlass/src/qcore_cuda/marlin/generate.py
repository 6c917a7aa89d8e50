"""Writes the kernels' sources and the table that finds them; says what building them costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcore_cuda.marlin.instances import THREAD_CONFIGS, THREAD_M_BLOCKS, Instance, Scheme

__all__ = [
    "SELECTOR",
    "Plan",
    "generate_new_kernels",
    "plan_of",
    "remove_old_kernels",
    "sources",
]

SELECTOR = "kernel_selector.h"
_COSTS = Path(__file__).with_name("build_costs.json")
_HEADER = "// Written by generate_kernels.py; do not edit.\n"


@dataclass(frozen=True)
class Plan:
    """What a build of some kernels takes, from figures measured once (``build_costs.json``)."""

    kernels: int
    files: int
    architectures: int
    seconds: float
    megabytes: float

    def __str__(self) -> str:
        return (
            f"{self.kernels} kernels in {self.files} files for {self.architectures} "
            f"architecture{'s' if self.architectures != 1 else ''}: about {self.seconds:.0f} s "
            f"on one core, {self.megabytes:.1f} MB in the library"
        )


def plan_of(instances: Sequence[Instance], archs: Iterable[int]) -> Plan:
    """The cost of compiling ``instances`` for ``archs``, each for those that can run it."""
    costs = json.loads(_COSTS.read_text(encoding="utf-8"))
    archs = list(archs)
    compiled = sum(_for_arch(i, arch) for i in instances for arch in archs)
    files = {i.scheme.file_name for i in instances}
    times = sum(_for_arch(next(i for i in instances if i.scheme.file_name == f), a)
                for f in files for a in archs)  # fmt: skip
    return Plan(
        kernels=len(instances),
        files=len(files),
        architectures=len(archs),
        seconds=compiled * costs["seconds_for_a_kernel"] + times * costs["seconds_for_a_file"],
        megabytes=compiled * costs["kilobytes_for_a_kernel"] / 1024,
    )


def _for_arch(instance: Instance, arch: int) -> bool:
    family = instance.scheme.family
    return arch < 80 if family == 75 else arch >= family


def remove_old_kernels(folder: Path) -> None:
    """Delete what an earlier run has written into ``folder``, and nothing else."""
    for path in [*folder.glob("sm[0-9][0-9]_kernel_*.cu"), folder / SELECTOR]:
        if path.is_file() and path.read_text(encoding="utf-8").startswith(_HEADER):
            path.unlink()


def sources(instances: Sequence[Instance]) -> dict[str, str]:
    """File name -> text, in a fixed order: kernels by types, then the table."""
    files: dict[str, list[str]] = {}
    for instance in instances:
        files.setdefault(instance.scheme.file_name, []).append(instance.line)
    written = {
        name: _HEADER + '#include "marlin/kernel.cuh"\n\n' + "\n".join(lines) + "\n"
        for name, lines in sorted(files.items())
    }
    written[SELECTOR] = _selector(instances)
    return written


def generate_new_kernels(folder: Path, instances: Sequence[Instance]) -> list[Path]:
    """Write the sources into ``folder``; a file that is as it should be is left alone.

    Returns:
        All files, those of kernels first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = sources(instances)
    for path in folder.glob("sm[0-9][0-9]_kernel_*.cu"):
        if path.name not in texts and path.read_text(encoding="utf-8").startswith(_HEADER):
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _selector(instances: Sequence[Instance]) -> str:
    """Rows of the table, rising by the scheme's key; in each a kernel or null for every tile."""
    by_scheme: dict[Scheme, dict[int, Instance]] = {}
    for instance in instances:
        by_scheme.setdefault(instance.scheme, {})[instance.slot] = instance
    slots = len(THREAD_M_BLOCKS) * len(THREAD_CONFIGS)
    tiles = ", ".join(f"{{{k}, {n}, {threads}}}" for k, n, threads in THREAD_CONFIGS)
    rows = ", ".join(str(int(2 * blocks)) for blocks in THREAD_M_BLOCKS)
    lines = [
        _HEADER + "// Included by csrc/marlin_select.cu.",
        f"constexpr int kTiles[{len(THREAD_CONFIGS)}][3] = {{{tiles}}};",
        f"constexpr int kRowsOfEight[{len(THREAD_M_BLOCKS)}] = {{{rows}}};",
        f"constexpr int kSlots = {slots};",
        "struct SchemeKernels {\n  uint32_t key;\n  const void* kernels[kSlots];\n};",
    ]
    lines += [
        f'extern "C" __global__ void {i.name}(const __grid_constant__ qcore_marlin::Params);'
        for i in instances
    ]
    lines.append(f"constexpr int kSchemes = {len(by_scheme)};")
    lines.append(f"const SchemeKernels kKernels[{max(len(by_scheme), 1)}] = {{")
    for scheme, found in sorted(by_scheme.items(), key=lambda item: item[0].key):
        kernels = [
            f"reinterpret_cast<const void*>({found[slot].name})" if slot in found else "nullptr"
            for slot in range(slots)
        ]
        lines.append(f"    {{{scheme.key}u, {{{', '.join(kernels)}}}}},")
    lines.append("};")
    return "\n".join(lines) + "\n"
