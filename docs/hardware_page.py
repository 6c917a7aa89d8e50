"""Write docs/hardware.md: every kernel at every target, with what was done there, by reports.

python docs/hardware_page.py
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

from evidence_reports import STRENGTH, Run, label_of, runs_of
from light_specs import declared_kernels
from qcore.facts.target import Target
from qcore.plugin import Evidence, KernelSpec, Platform
from qcore.registry import RegisteredKernel
from qcore.selection.questions import declared_refusal
from qcore.settings import Settings

PAGE = Path(__file__).with_name("hardware.md")
TARGETS = (
    "cpu",
    "cuda:sm_80",
    "cuda:sm_89",
    "cuda:sm_90",
    "cuda:sm_100",
    "cuda:sm_120",
    "rocm:gfx90a",
    "rocm:gfx942",
    "rocm:gfx950",
    "rocm:gfx1201",
    "xpu",
)
WORDS = {
    Evidence.EXECUTED: "executed",
    Evidence.STAND_IN: "stand-in",
    Evidence.COMPILED: "compiled",
    Evidence.CONTRACT: "contract-tested",
    Evidence.UNSTATED: "no report",
}
MEANING = (
    ("executed", "run on such hardware"),
    ("stand-in", "run, but on other hardware, an emulator or an interpreter: see which"),
    ("compiled", "compiled for it, and the result looked at; never run"),
    ("contract-tested", "its calls checked against a stand-in of the vendor's library"),
    ("fails", "run there, and a check failed"),
    ("no report", "declared for it; no report in the repository says more"),
    ("", "not for this target"),
)


def pages() -> dict[Path, str]:
    """The page."""
    return {PAGE: render()}


def render() -> str:
    """Its text."""
    lines = [
        "# Kernels and hardware",
        "",
        "Made by `python docs/build.py` from what the kernels declare and from the reports of "
        "tests in [tests/hardware-reports](../tests/hardware-reports) and "
        "[tests/gpu-reports](../tests/gpu-reports). No label at a target is written by hand.",
        "",
        "| label | at a target |",
        "| --- | --- |",
        *(f"| {label} | {text} |" for label, text in MEANING),
        "",
        "A run on one generation of GPUs is *executed* for that generation and a *stand-in* for "
        "the others, where the same class may reach other code. *Declared* is what the plugin says "
        "of its kernel, for the best of its targets.",
        "",
        "A report is made by `QCORE_TEST_REPORT=FILE pytest plugins/NAME/tests`, by `python "
        "tests/run_kit.py --out FILE`, or on a GPU by `python tests/run_gpu.py --out FILE`.",
    ]
    for distribution in sorted({k.distribution for k in declared_kernels()}):
        lines += _section(distribution)
    return "\n".join(lines) + "\n"


def _section(distribution: str) -> list[str]:
    kernels = [k for k in declared_kernels() if k.distribution == distribution]
    platforms = {p for k in kernels for p in k.spec.platforms}
    targets = [t for t in TARGETS if Target.parse(t).platform in platforms]
    shown = [t.partition(":")[2] or t.upper() for t in targets]
    lines = ["", f"## {distribution}", ""]
    lines += [f"| kernel | type | {' | '.join(shown)} | declared | state |"]
    lines += ["| --- " * (len(targets) + 4) + "|"]
    lines += [_row(kernel, targets) for kernel in kernels]
    lines += ["", "What was done:", ""]
    seen = set()
    for kernel in kernels:
        if kernel.name not in seen:
            lines += [f"- `{kernel.name}`: {_done(kernel.spec)}"]
        seen.add(kernel.name)
    return lines


def _row(kernel: RegisteredKernel, targets: Sequence[str]) -> str:
    spec = kernel.spec
    cells = [cell(spec, target, runs_of()) for target in targets]
    return (
        f"| `{spec.name}` | {spec.kernel_type} | {' | '.join(cells)} | "
        f"{WORDS[spec.evidence]} | {state(spec, runs_of())} |"
    )


def cell(spec: KernelSpec, target: str, runs: Sequence[Run]) -> str:
    """What was done with a kernel at a target, in a word; "" where it is not for it."""
    at = Target.parse(target)
    if at.platform not in spec.platforms:
        return ""
    allow = Settings(approximate=True)
    if at.platform is not Platform.CPU and declared_refusal(spec, at, allow, "auto") is not None:
        return ""
    own = [run for run in runs if run.kernel == spec.name]
    if any(not run.ok and run.label(spec, at) is Evidence.EXECUTED for run in own):
        return "fails"
    return WORDS[label_of(spec, own, at)]


def state(spec: KernelSpec, runs: Sequence[Run]) -> str:
    """Whether checks failed, and whether the declared label has a report behind it."""
    own = [run for run in runs if run.kernel == spec.name]
    failing = sorted({run.what for run in own if not run.ok})
    if failing:
        return f"fails: {', '.join(failing)}"
    if not own:
        return "no report"
    if not backed(spec, own):
        return f"no report of {WORDS[spec.evidence]}"
    return "passes"


def backed(spec: KernelSpec, runs: Sequence[Run]) -> bool:
    """Whether a report supports the label that a kernel declares, or a stronger one."""
    return STRENGTH.index(label_of(spec, runs)) <= STRENGTH.index(spec.evidence)


def _done(spec: KernelSpec) -> str:
    texts = []
    for run in runs_of():
        if run.kernel != spec.name:
            continue
        label = run.label(spec)
        words = [f"{WORDS[label]}: " if label else "", run.what]
        if run.target is not None and run.target.platform not in (Platform.CPU, Platform.XPU):
            words.append(f" ({run.target})")
        if run.layers:
            words.append(f", {run.layers} layer{'s' if run.layers > 1 else ''}")
        if run.worst is not None:
            words.append(f", at most {run.worst:.0%} of the allowed error")
        if not run.ok:
            words.append(", **fails**")
        words.append(f" ([report]({posixpath.relpath(run.file, 'docs')}))")
        texts.append("".join(words))
    return "; ".join(dict.fromkeys(texts)) or "no report"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
