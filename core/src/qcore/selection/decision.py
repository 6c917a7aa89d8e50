"""`Decision`: what selection found out, candidate by candidate; all that users see is this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from qcore.facts.target import Target
from qcore.kernels.base import LinearKernel
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.entry import RegisteredKernel

__all__ = ["Candidate", "Decision", "Stage"]


class Stage(str, Enum):
    """The questions, in the order in which a candidate is asked them."""

    DISABLED = "disabled"
    BACKEND = "backend"
    BATCH_INVARIANCE = "batch invariance"
    NUMERICS = "numerics"
    PLATFORM = "platform"
    CAPABILITY = "capability"
    DEPENDENCY = "dependency"
    IMPORT = "import"
    SUPPORT = "support"
    CONFIG = "config"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Candidate:
    """One kernel in a decision.

    Attributes:
        kernel: the kernel.
        priority: the one that counted (declared, or overridden by the user).
        stage: where it was refused; None if it was not.
        reason: why, in words; for one that was not refused, "".
        chosen: whether it runs the layer.
        tried: False if a candidate before it was chosen, so that it was not asked.
        details: a traceback, where an exception refused it.
        forced: whether the user wants it tried before all others.
        behind: why it is not the chosen one, if nothing refused it.
    """

    kernel: RegisteredKernel
    priority: int
    stage: Stage | None = None
    reason: str = ""
    chosen: bool = False
    tried: bool = True
    details: str = ""
    forced: bool = False
    behind: str = "lower priority"

    @property
    def name(self) -> str:
        """The class's name."""
        return self.kernel.name

    def verdict(self) -> str:
        """``chosen``, ``refused (config): ...``, ``lower priority, not tried`` ..."""
        if self.chosen:
            return "chosen"
        if not self.tried:
            return f"{self.behind}, not tried"
        if self.stage is None:
            return f"could run it, {self.behind}"
        return f"refused ({self.stage}): {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        spec = self.kernel.spec
        return {
            "kernel": self.name,
            "backend": spec.backend,
            "distribution": self.kernel.distribution,
            "priority": self.priority,
            "chosen": self.chosen,
            "tried": self.tried,
            "stage": str(self.stage) if self.stage else None,
            "reason": self.reason or None,
            "numerics": str(spec.numerics),
            "evidence": str(spec.evidence),
        }


@dataclass(frozen=True)
class Decision:
    """Which kernel runs a layer, where, and why.

    Attributes:
        config: the layer.
        target: the machine.
        candidates: every kernel of the layer's type, in the order in which they were considered.
        notes: what else the user should know: names that match nothing, requests not met.
        unmet: requests (a backend, a forced kernel) that could not be met for this layer.
    """

    config: MMLinearLayerConfig
    target: Target
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that runs the layer, if any can."""
        return next((c for c in self.candidates if c.chosen), None)

    @property
    def kernel_name(self) -> str | None:
        """The chosen class's name."""
        return self.chosen.name if self.chosen else None

    @property
    def kernel_class(self) -> type[LinearKernel[Any]]:
        """The chosen class.

        Raises:
            NoKernelError: no kernel can run the layer; the text is the whole decision.
        """
        if self.chosen is None:
            from qcore.errors import NoKernelError

            raise NoKernelError(self)
        return self.chosen.kernel.load()

    @property
    def _by_strictness(self) -> bool:
        """Whether none is chosen, though one could run the layer."""
        return self.chosen is None and any(c.tried and c.stage is None for c in self.candidates)

    @property
    def reason(self) -> str:
        """Why the chosen one, in a line."""
        if self.chosen is None:
            return "; ".join(self.unmet) if self._by_strictness else "no kernel can run it"
        before = self.candidates[: self.candidates.index(self.chosen)]
        refused = [c for c in before if c.stage is not Stage.PLATFORM]
        if not refused:
            forced = self.chosen.forced
            return "forced" if forced else f"highest priority for {self.target.platform}"
        first = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        return f"after {first.name}{more}: {first.stage}: {first.reason}"

    def render(self) -> str:
        """The whole decision, as text for a person."""
        lines = [
            f"layer:  {self.config.kernel_type}: {self.config.describe()}{_shape(self.config)}"
        ]
        lines.append(f"target: {self.target}" + _named(self.target))
        if self.chosen is not None:
            spec = self.chosen.kernel.spec
            lines.append(f"kernel: {self.chosen.name} ({spec.backend}, {spec.numerics})")
        elif self._by_strictness:
            lines.append("kernel: none, in strict mode; what each of them lacks:")
        else:
            lines.append("kernel: none can run this layer; what each of them lacks:")
        width = max((len(c.name) for c in self.candidates), default=0)
        for candidate in self.candidates:
            lines.append(
                f"  {candidate.priority:>5}  {candidate.name:<{width}}  {candidate.verdict()}"
            )
        if not self.candidates:
            lines.append(f"  no kernel is registered for {self.config.kernel_type!r} layers")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "kernel_type": self.config.kernel_type,
            "config": self.config.to_dict(),
            "target": str(self.target),
            "kernel": self.kernel_name,
            "reason": self.reason,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "notes": list(self.notes),
        }


def _shape(config: MMLinearLayerConfig) -> str:
    K, N = config.in_features, config.out_features
    return f", K={K} N={N}" if K is not None and N is not None else ""


def _named(target: Target) -> str:
    if target.is_current:
        return f" (this machine: {target.device_name})" if target.device_name else " (this machine)"
    return " (as described; installed packages and devices were not asked)"
