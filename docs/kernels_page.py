"""Write docs/kernels.md from the registry: every kernel of this repository with its label.

python docs/kernels_page.py
"""

from __future__ import annotations

from pathlib import Path

from qcore.kernels import KERNEL_TYPES
from qcore.registry import Evidence, RegisteredKernel
from reach import our_registry

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
        "The reference kernels (`reference`, `emulation`) run on every device that torch has. They "
        "were executed on x86 processors and on an NVIDIA H200 "
        "([report](../tests/gpu-reports/nvidia-h200.json)).",
    ]
    for name, kind in KERNEL_TYPES.items():
        lines += ["", f"## {name}: {kind.about}", ""]
        lines += ["| kernel | wheel | backend | priority | needs | numerics | label |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        lines += [_row(kernel) for kernel in our_registry().kernels(name)]
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
