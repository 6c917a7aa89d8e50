"""`Outcome` of one check on one layer, and `Worst`, the largest error that it saw."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outcome", "Worst"]


@dataclass(frozen=True, order=True)
class Worst:
    """The result that came nearest to what is allowed.

    Attributes:
        ratio: error / allowed.
        error: distance from the float64 result.
        allowed: how far it might have been.
        config: the layer, in words.
        call: which call.
    """

    ratio: float
    error: float
    allowed: float
    config: str
    call: str

    def __str__(self) -> str:
        return (
            f"{self.error:.3g}, {self.ratio:.0%} of the allowed {self.allowed:.3g} "
            f"({self.config}; {self.call})"
        )


@dataclass(frozen=True)
class Outcome:
    """A check that did not fail.

    Attributes:
        not_run: why there was nothing to check; "" if there was.
        worst: the largest error, where the check measures one.
    """

    not_run: str = ""
    worst: Worst | None = None
