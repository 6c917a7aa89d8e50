"""Write docs/kernels.md: every kernel that this repository declares, with its label.

python docs/kernels_page.py
"""

from __future__ import annotations

from pathlib import Path

from light_specs import declared_kernels
from qcore.kernels import KERNEL_TYPES
from qcore.registry import Evidence, RegisteredKernel

PAGE = Path(__file__).with_name("kernels.md")
MEANING = {
    Evidence.EXECUTED: "run on the hardware that it is declared for",
    Evidence.STAND_IN: "run, but on other hardware or an emulator",
    Evidence.COMPILED: "compiled, never run",
    Evidence.CONTRACT: "its calls checked against a stand-in of the vendor's library",
    Evidence.UNSTATED: "its author does not say",
}


def pages() -> dict[Path, str]:
    """The page."""
    return {PAGE: render()}


def render() -> str:
    """Its text."""
    lines = [
        "# Kernels",
        "",
        "Made by `python docs/build.py` from the kernels' own declarations.",
        "",
        "| label | what was done with the kernel |",
        "| --- | --- |",
        *(f"| {label} | {text} |" for label, text in MEANING.items()),
        "",
        "The reference kernels (`reference`, `emulation`) run on every device that torch has. "
        "[Kernels and hardware](hardware.md) has the reports behind the labels, target by target.",
    ]
    for name, kind in KERNEL_TYPES.items():
        lines += ["", f"## {name}: {kind.about}", ""]
        lines += ["| kernel | wheel | backend | priority | needs | numerics | label |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        lines += [_row(k) for k in declared_kernels() if k.spec.kernel_type == name]
    return "\n".join(lines) + "\n"


def _row(kernel: RegisteredKernel) -> str:
    spec = kernel.spec
    cells = (
        f"`{spec.name}`: {spec.description}",
        kernel.distribution,
        f"`{spec.backend}`",
        str(int(spec.priority)),
        _needs(kernel),
        f"{spec.numerics}{', batch-invariant' if spec.batch_invariant else ''}",
        str(spec.evidence),
    )
    return "| " + " | ".join(cells) + " |"


def _needs(kernel: RegisteredKernel) -> str:
    spec = kernel.spec
    anywhere = len(spec.platforms) > 4
    needs = ["any device"] if anywhere else [str(p) for p in spec.platforms]
    if spec.min_capability is not None:
        needs.append(f"capability {spec.min_capability}+")
    if spec.max_capability is not None:
        needs.append(f"capability up to {spec.max_capability}")
    needs += [*spec.archs, *spec.cpu_features]
    needs += [f"module {module}" for module in spec.modules]
    return ", ".join(needs)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
