"""Reports of tests, as `docs/hardware_page.py` reads them: what was done with a kernel, and where.

There are two kinds of files: those of `qcore.testing.record` in ``tests/hardware-reports``, and
those of ``tests/run_gpu.py`` and its like in ``tests/gpu-reports``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qcore.facts.target import Target
from qcore.plugin import Evidence, KernelSpec, Platform

__all__ = ["STRENGTH", "Run", "label_of", "runs_of", "runs_of_gpu_report", "runs_of_record"]

ROOT = Path(__file__).resolve().parents[1]
RECORDS, GPU_REPORTS = "tests/hardware-reports", "tests/gpu-reports"

STRENGTH = (
    Evidence.EXECUTED,
    Evidence.STAND_IN,
    Evidence.COMPILED,
    Evidence.CONTRACT,
    Evidence.UNSTATED,
)
"""The labels, the strongest first."""


@dataclass(frozen=True)
class Run:
    """What a report says of a kernel.

    Attributes:
        kernel: the class's name.
        how: as a test said it; None where the kernel was run on a machine as it is.
        what: the machine, or what stood in for it.
        target: where it ran; None where it stands for whatever the kernel is declared for.
        ok: whether nothing failed.
        layers: on how many layers results were compared.
        worst: the error that came nearest to what is allowed, as a fraction of that.
        file: the report.
    """

    kernel: str
    how: Evidence | None
    what: str
    target: Target | None
    ok: bool
    layers: int
    worst: float | None
    file: str

    def label(self, spec: KernelSpec, at: Target | None = None) -> Evidence | None:
        """What this is evidence of, for a kernel at a target (None: any that it is declared for).

        None where it says nothing about that target.
        """
        if self.how is not None and self.how is not Evidence.EXECUTED:
            here = at is None or self.target is None or _same(self.target, at)
            return self.how if here else None
        assert self.target is not None
        if self.target.platform in spec.platforms and (at is None or _same(self.target, at)):
            return Evidence.EXECUTED
        if self.target.platform is Platform.CPU and spec.evidence is Evidence.CONTRACT:
            return Evidence.CONTRACT  # a test on a CPU, with something in the library's place
        return Evidence.STAND_IN


def _same(one: Target, other: Target) -> bool:
    if one.platform is not other.platform:
        return False
    return one.platform in (Platform.CPU, Platform.XPU) or one.arch == other.arch


def label_of(spec: KernelSpec, runs: Iterable[Run], at: Target | None = None) -> Evidence:
    """The strongest label that runs without a failure support."""
    labels = [run.label(spec, at) for run in runs if run.kernel == spec.name and run.ok]
    return min((label for label in labels if label), key=STRENGTH.index, default=Evidence.UNSTATED)


def runs_of_record(report: Mapping[str, Any], file: str) -> list[Run]:
    """Of a file that `qcore.testing.record` wrote."""
    if report.get("format") != 1:
        raise ValueError(f"{file}: format is {report.get('format')!r}; 1 is known")
    return [
        Run(
            run["kernel"],
            Evidence(run["how"]) if run["how"] else None,
            run["what"].partition(" with ")[0] if not run["how"] else run["what"],
            Target.parse(run["target"]) if run["target"] else None,
            run["ok"],
            _layers(run.get("checks", {})),
            run.get("worst_ratio"),
            file,
        )
        for run in report["runs"]
    ]


def runs_of_gpu_report(report: Mapping[str, Any], file: str) -> list[Run]:
    """Of a file that ``tests/run_gpu.py`` wrote, or another with the kit's reports in it.

    Files about something else (a run under a sanitizer) have none, and say nothing of labels.
    """
    if "kernels" not in report:
        return []
    return [
        Run(
            kernel["kernel"],
            None,
            str(report["device"]),
            Target.parse((kernel.get("target") or report["target"]).partition(" ")[0]),
            kernel["ok"],
            _layers(kernel["checks"]),
            kernel["worst"]["ratio"] if kernel.get("worst") else None,
            file,
        )
        for kernel in report["kernels"]
        if kernel["ok"] is not None
    ]


def _layers(checks: Mapping[str, Mapping[str, Any]]) -> int:
    compared = ("check_numerics", "check_experts")
    return max((checks[name]["runs"] for name in compared if name in checks), default=0)


@lru_cache(maxsize=1)
def runs_of() -> tuple[Run, ...]:
    """Of every report in the repository."""
    found: list[Run] = []
    for folder, read in ((RECORDS, runs_of_record), (GPU_REPORTS, runs_of_gpu_report)):
        for path in sorted((ROOT / folder).glob("*.json")):
            report = json.loads(path.read_text(encoding="utf-8"))
            found += read(report, path.relative_to(ROOT).as_posix())
    return tuple(found)
