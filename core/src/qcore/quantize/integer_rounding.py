"""Groups of weights to integer codes, nearest first, with the scale that loses least."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["RATIOS", "Rounded", "round_integers", "stored_scale"]

RATIOS = (1.0, 1.08, 1.06, 1.04, 1.02, *(round(0.98 - 0.02 * i, 2) for i in range(15)))
"""Parts of the covering scale that a search tries: 1.08 down to 0.70. The first wins ties."""

Rounded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Codes [groups, size], scales [groups, 1], zero points [groups, 1], squared errors [groups, 1]."""


def round_integers(
    x: torch.Tensor, bits: int, *, symmetric: bool, dtype: torch.dtype, search: bool
) -> Rounded:
    """Round each row of ``x``, which is a group.

    Args:
        x: float32 [groups, size].
        bits: of a code.
        symmetric: codes in ``-half .. half - 1`` and no zero points; else in ``0 .. 2**bits - 1``.
        dtype: that scales are stored in.
        search: try all of `RATIOS`.
    """
    ratios = RATIOS if search else RATIOS[:1]
    return (_symmetric if symmetric else _asymmetric)(x, bits, dtype, ratios)


def _symmetric(
    x: torch.Tensor, bits: int, dtype: torch.dtype, ratios: tuple[float, ...]
) -> Rounded:
    """Codes in ``-half .. half - 1``.

    The covering scale is ``amax / (half - 0.5)``: both ends are then off by half a step at most.
    """
    half = float(1 << (bits - 1))
    cover = x.abs().amax(-1, keepdim=True) / (half - 0.5)

    def candidate(ratio: float) -> _Candidate:
        return _Candidate(stored_scale(cover * ratio, dtype), None, -half, half - 1)

    return _best(x, [candidate(ratio) for ratio in ratios])


def _asymmetric(
    x: torch.Tensor, bits: int, dtype: torch.dtype, ratios: tuple[float, ...]
) -> Rounded:
    """Codes in ``0 .. 2**bits - 1``; zero is always a code, so the range takes it in."""
    top = float((1 << bits) - 1)
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    cover = (x.amax(-1, keepdim=True).clamp(min=0.0) - low) / top

    def candidate(ratio: float) -> _Candidate:
        scale = stored_scale(cover * ratio, dtype)
        zero = (-low * ratio / scale).round_().clamp_(0.0, top)
        return _Candidate(scale, zero, 0.0, top)

    return _best(x, [candidate(ratio) for ratio in ratios])


@dataclass(frozen=True)
class _Candidate:
    """A scale for each group, with the zero points that go with it and the range of codes."""

    scale: torch.Tensor
    zero: torch.Tensor | None
    least: float
    most: float

    def steps(self, x: torch.Tensor, exact: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
        """``x`` in whole steps from zero, in ``work``; in ``exact`` before they are rounded."""
        torch.div(x, self.scale, out=exact)
        torch.round(exact, out=work)
        if self.zero is None:
            return work.clamp_(self.least, self.most)
        return work.clamp_(self.least - self.zero, self.most - self.zero)

    def error(self, x: torch.Tensor, exact: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
        """The squared error of each group."""
        off = self.steps(x, exact, work).sub_(exact)
        norm: torch.Tensor = torch.linalg.vector_norm(off, dim=-1, keepdim=True)
        return norm.mul_(self.scale).square_()


def _best(x: torch.Tensor, candidates: list[_Candidate]) -> Rounded:
    """The codes with the candidate that loses least, group by group."""
    exact, work = torch.empty_like(x), torch.empty_like(x)
    first, *others = candidates
    scale, zero, error = first.scale, first.zero, first.error(x, exact, work)
    for other in others:
        other_error = other.error(x, exact, work)
        better = other_error < error
        scale = torch.where(better, other.scale, scale)
        error = torch.where(better, other_error, error)
        if zero is not None and other.zero is not None:
            zero = torch.where(better, other.zero, zero)
    chosen = _Candidate(scale, zero, first.least, first.most)
    steps = chosen.steps(x, exact, work)
    if zero is None:
        return steps, scale, torch.zeros_like(scale), error
    return steps.add_(zero), scale, zero, error


def stored_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scale`` as it will be read back; 1 for a group of zeros."""
    least = torch.finfo(dtype).tiny
    kept = scale.clamp(min=least).to(dtype).to(torch.float32)
    return torch.where(scale == 0, torch.ones_like(scale), kept)
