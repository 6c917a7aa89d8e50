"""Round a weight to integer codes, nearest first, with the scale that loses least.

The scale of a group starts at the one that just covers its values. With a search, `RATIOS` of it
are tried and the one with the least squared error is kept: a few values are clipped so that all the
others lie closer together. Codes are always made from the scale *as it is stored* (bfloat16 has
eight bits of it), so that what is read back is what was weighed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qcore.numerics.packing import pack_int32
from qcore.quantize.scheme import QuantizeScheme

__all__ = ["RATIOS", "RoundedWeight", "round_weight"]

RATIOS = (1.0, 1.08, 1.06, 1.04, 1.02, *(round(0.98 - 0.02 * i, 2) for i in range(15)))
"""Parts of the covering scale that a search tries: 1.08 down to 0.70. The first wins ties."""

_CHUNK = 1 << 18
"""Elements that are worked on at a time: few enough to stay in the cache in float32."""


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight.

    Attributes:
        tensors: by the name that compressed-tensors gives them after the layer's.
        relative_error: ``|w - rounded| / |w|``, in the 2-norm.
    """

    tensors: dict[str, torch.Tensor]
    relative_error: float


def round_weight(
    weight: torch.Tensor, scheme: QuantizeScheme, *, search: bool = True
) -> RoundedWeight:
    """Round a weight.

    Args:
        weight: float [N, K]; K a multiple of the scheme's group.
        scheme: to what.
        search: try `RATIOS` instead of the covering scale alone.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    N, K = weight.shape
    G = scheme.groups(K)
    pack = 32 // scheme.bits
    scale = torch.empty((N, G), dtype=weight.dtype)
    zero = None if scheme.symmetric else torch.empty((N, G), dtype=torch.uint8)
    if scheme.int8_activations:
        codes = torch.empty((N, K), dtype=torch.int8)
    else:
        codes = torch.empty((N, -(-K // pack)), dtype=torch.int32)
    ratios = RATIOS if search else RATIOS[:1]

    def round_rows(part: slice) -> tuple[float, float]:
        """Round some rows; gives the squares of what is lost and of what was there."""
        x = weight[part].to(torch.float32).reshape(-1, K // G)
        total = float(x.square().sum(dtype=torch.float64))
        if not math.isfinite(total):
            raise ValueError("it holds NaN or infinity")
        round_groups = _symmetric if scheme.symmetric else _asymmetric
        q, s, z, error = round_groups(x, scheme.bits, weight.dtype, ratios)
        scale[part] = s.reshape(-1, G).to(weight.dtype)
        if zero is not None:
            zero[part] = z.reshape(-1, G).to(torch.uint8)
        q = q.reshape(-1, K)
        if scheme.int8_activations:
            codes[part] = q.to(torch.int8)
        else:
            offset = (1 << scheme.bits) >> 1 if scheme.symmetric else 0
            codes[part] = pack_int32((q + offset).to(torch.uint8), scheme.bits, dim=1)
        return float(error.sum(dtype=torch.float64)), total

    rows = max(1, _CHUNK // K)
    parts = [slice(start, min(start + rows, N)) for start in range(0, N, rows)]
    with _workers() as workers:
        sums = list(workers.map(round_rows, parts))
    lost, total = (math.fsum(column) for column in zip(*sums, strict=True))
    tensors = {"weight" if scheme.int8_activations else "weight_packed": codes}
    tensors["weight_scale"] = scale
    if zero is not None:
        tensors["weight_zero_point"] = pack_int32(zero, scheme.bits, dim=0)
    if not scheme.int8_activations:
        tensors["weight_shape"] = torch.tensor([N, K], dtype=torch.int64)
    return RoundedWeight(tensors, (lost / total) ** 0.5 if total else 0.0)


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, each of which runs its operations alone.

    The operations are short: dividing each among threads costs more than it gains, and very much
    more on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


Rounded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Codes [groups, size], scales [groups, 1], zero points [groups, 1], squared errors [groups, 1]."""


def _symmetric(
    x: torch.Tensor, bits: int, dtype: torch.dtype, ratios: tuple[float, ...]
) -> Rounded:
    """Codes in ``-half .. half - 1``.

    The covering scale is ``amax / (half - 0.5)``: both ends are then off by half a step at most.
    """
    half = float(1 << (bits - 1))
    cover = x.abs().amax(-1, keepdim=True) / (half - 0.5)

    def candidate(ratio: float) -> _Candidate:
        return _Candidate(_stored(cover * ratio, dtype), None, -half, half - 1)

    return _best(x, [candidate(ratio) for ratio in ratios])


def _asymmetric(
    x: torch.Tensor, bits: int, dtype: torch.dtype, ratios: tuple[float, ...]
) -> Rounded:
    """Codes in ``0 .. 2**bits - 1``; zero is always a code, so the range takes it in."""
    top = float((1 << bits) - 1)
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    cover = (x.amax(-1, keepdim=True).clamp(min=0.0) - low) / top

    def candidate(ratio: float) -> _Candidate:
        scale = _stored(cover * ratio, dtype)
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


def _stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scale`` as it will be read back; 1 for a group of zeros."""
    least = torch.finfo(dtype).tiny
    kept = scale.clamp(min=least).to(dtype).to(torch.float32)
    return torch.where(scale == 0, torch.ones_like(scale), kept)
