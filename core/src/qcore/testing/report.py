"""`ConformanceReport`: what was checked, how often, and how near a result came to its bound."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from qcore.testing.outcome import Outcome, Worst
from qcore.testing.subject import ConformanceError, Subject

__all__ = ["CheckRecord", "ConformanceReport"]


@dataclass
class CheckRecord:
    """One check, over all layers.

    Attributes:
        runs: layers on which it ran.
        failures: what it found.
        not_run: reason -> number of layers on which there was nothing to check.
    """

    runs: int = 0
    failures: list[ConformanceError] = field(default_factory=list)
    not_run: Counter[str] = field(default_factory=Counter)


@dataclass
class ConformanceReport:
    """The result of `qcore.testing.check_kernel`.

    Attributes:
        subject: the kernel.
        offered: layers that it was asked about.
        claimed: those that it implements.
        checks: name -> record.
        worst: the result that came nearest to what is allowed.
        seconds: how long it took.
    """

    subject: Subject
    offered: int = 0
    claimed: int = 0
    checks: dict[str, CheckRecord] = field(default_factory=dict)
    worst: Worst | None = None
    seconds: float = 0.0

    @property
    def failures(self) -> list[ConformanceError]:
        """What all checks found."""
        return [failure for record in self.checks.values() for failure in record.failures]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.failures

    def take(self, check: str, outcome: Outcome) -> None:
        """Add the outcome of a check."""
        record = self.checks.setdefault(check, CheckRecord())
        if outcome.not_run:
            record.not_run[outcome.not_run] += 1
            return
        record.runs += 1
        if outcome.worst is not None and (self.worst is None or outcome.worst > self.worst):
            self.worst = outcome.worst

    def take_failure(self, failure: ConformanceError) -> None:
        """Add a failure, to the check that it names."""
        record = self.checks.setdefault(failure.check, CheckRecord())
        record.runs += 1
        record.failures.append(failure)

    def render(self) -> str:
        """The report as text."""
        spec = self.subject.declared
        lines = [
            f"{self.subject.name} ({spec.kernel_type}, backend {spec.backend}): "
            f"{'conforms' if self.ok else 'DOES NOT CONFORM'}",
            f"  declared  evidence: {spec.evidence}, numerics: {spec.numerics}, "
            f"batch invariant: {'yes' if spec.batch_invariant else 'no'}",
            f"  run on    {self.subject.target()}, torch {torch.__version__}",
            f"  layers    {self.claimed} of {self.offered} are implemented",
        ]
        width = max((len(name) for name in self.checks), default=0)
        for name, record in self.checks.items():
            words = [f"{record.runs} run"]
            if record.failures:
                words.append(f"{len(record.failures)} FAILED")
            words += [f"{count} not: {reason}" for reason, count in record.not_run.items()]
            lines.append(f"  {name:<{width}}  {'; '.join(words)}")
        lines.append(f"  worst     {self.worst if self.worst else 'no result was compared'}")
        lines += [f"  failure   {failure}" for failure in self.failures[:10]]
        if len(self.failures) > 10:
            lines.append(f"  ... and {len(self.failures) - 10} more failures")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        spec = self.subject.declared
        return {
            "kernel": self.subject.name,
            "kernel_type": spec.kernel_type,
            "backend": spec.backend,
            "evidence": str(spec.evidence),
            "numerics": str(spec.numerics),
            "batch_invariant": spec.batch_invariant,
            "target": self.subject.target().describe(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "ok": self.ok,
            "configs": {"offered": self.offered, "claimed": self.claimed},
            "checks": {
                name: {
                    "runs": record.runs,
                    "failed": len(record.failures),
                    "not_run": dict(record.not_run),
                }
                for name, record in self.checks.items()
            },
            "worst": vars(self.worst).copy() if self.worst else None,
            "failures": [
                {"check": f.check, "config": f.config, "problem": f.problem} for f in self.failures
            ],
            "seconds": round(self.seconds, 3),
        }

    def raise_if_failed(self) -> None:
        """Raise what was found.

        Raises:
            ConformanceError: something was; the text is the whole report.
        """
        if not self.ok:
            first = self.failures[0]
            error = ConformanceError(first.kernel, first.check, first.config, first.problem)
            error.args = (self.render(),)
            raise error
