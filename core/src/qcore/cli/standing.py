"""`Standing`: whether a kernel can be used on a machine at all, before any layer is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.registry.entry import RegisteredKernel
from qcore.selection.decision import Stage
from qcore.selection.questions import declared_refusal, support_refusal
from qcore.settings import Settings

__all__ = ["Standing", "declared_standing", "needs", "platforms", "tried_standing"]


@dataclass(frozen=True)
class Standing:
    """Whether a kernel can be used.

    Attributes:
        kernel: the kernel.
        stage: what refuses it; None if nothing does.
        reason: why, in words.
        details: a traceback, where there is one.
    """

    kernel: RegisteredKernel
    stage: Stage | None = None
    reason: str = ""
    details: str = ""

    @property
    def usable(self) -> bool:
        """Whether nothing refuses it."""
        return self.stage is None

    def verdict(self) -> str:
        """``usable``, or the stage and the reason."""
        return "usable" if self.stage is None else f"{self.stage}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "kernel": self.kernel.name,
            "kernel_type": self.kernel.spec.kernel_type,
            "distribution": self.kernel.distribution,
            "stage": str(self.stage) if self.stage else None,
            "reason": self.reason or None,
            "details": self.details or None,
        }


def declared_standing(kernel: RegisteredKernel, target: Target, settings: Settings) -> Standing:
    """What the declaration says; nothing is imported."""
    backend = settings.backend_for(kernel.spec.kernel_type)
    refusal = declared_refusal(kernel.spec, target, settings, backend)
    return Standing(kernel, *refusal) if refusal is not None else Standing(kernel)


def tried_standing(kernel: RegisteredKernel, target: Target, settings: Settings) -> Standing:
    """What the declaration says; then import the class and ask it. Never raises."""
    standing = declared_standing(kernel, target, settings)
    if not standing.usable:
        return standing
    with weighing(target):
        refusal = support_refusal(kernel, target)
    return Standing(kernel, *refusal) if refusal is not None else standing


def platforms(kernel: RegisteredKernel) -> str:
    """``cuda``, ``cuda, rocm`` or ``any``."""
    named = [str(platform) for platform in kernel.spec.platforms]
    return "any" if {"cpu", "cuda", "rocm", "xpu"} <= set(named) else ", ".join(named)


def needs(kernel: RegisteredKernel) -> str:
    """What the declaration asks for besides the platform: ``sm_80 and up; module aiter``."""
    spec = kernel.spec
    parts = []
    low, high = spec.min_capability, spec.max_capability
    if spec.archs:
        parts.append(", ".join(spec.archs))
    elif low is not None and high is not None:
        parts.append(f"capability {low}" if low == high else f"capability {low} to {high}")
    elif low is not None:
        parts.append(f"capability {low} and up")
    elif high is not None:
        parts.append(f"capability up to {high}")
    parts += [", ".join(spec.cpu_features)] if spec.cpu_features else []
    parts += [f"module {', '.join(spec.modules)}"] if spec.modules else []
    return "; ".join(parts)
