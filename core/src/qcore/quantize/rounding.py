"""Round a weight to integer codes, nearest first, with the scale that loses least.

The scale of a group starts at the one that just covers its values. With a search, `RATIOS` of it
are tried and the one with the least squared error is kept: a few values are clipped so that all the
others lie closer together. Codes are always made from the scale *as it is stored* (bfloat16 has
eight bits of it), so that what is read back is what was weighed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcore.numerics.packing import pack_int32
from qcore.quantize.scheme import QuantizeScheme

__all__ = ["RATIOS", "RoundedWeight", "round_weight"]

RATIOS = (1.0, 1.08, 1.06, 1.04, 1.02, *(round(0.98 - 0.02 * i, 2) for i in range(15)))
"""Parts of the covering scale that a search tries: 1.08 down to 0.70. The first wins ties."""

_CHUNK = 1 << 20
"""Elements that are worked on at a time: a few float32 copies of them are held."""


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
    lost = total = 0.0
    rows = max(1, _CHUNK // K)
    for start in range(0, N, rows):
        part = slice(start, min(start + rows, N))
        x = weight[part].to(torch.float32).reshape(-1, K // G)
        round_groups = _symmetric if scheme.symmetric else _asymmetric
        q, s, z, error = round_groups(x, scheme.bits, weight.dtype, ratios)
        norm = float(x.square().sum(dtype=torch.float64))
        if norm != norm or norm == float("inf"):
            raise ValueError("it holds NaN or infinity")
        lost, total = lost + float(error.sum(dtype=torch.float64)), total + norm
        scale[part] = s.reshape(-1, G).to(weight.dtype)
        if zero is not None:
            zero[part] = z.reshape(-1, G).to(torch.uint8)
        q = q.reshape(-1, K)
        if scheme.int8_activations:
            codes[part] = q.to(torch.int8)
        else:
            offset = (1 << scheme.bits) >> 1 if scheme.symmetric else 0
            codes[part] = pack_int32((q + offset).to(torch.uint8), scheme.bits, dim=1)
    tensors = {"weight" if scheme.int8_activations else "weight_packed": codes}
    tensors["weight_scale"] = scale
    if zero is not None:
        tensors["weight_zero_point"] = pack_int32(zero, scheme.bits, dim=0)
    if not scheme.int8_activations:
        tensors["weight_shape"] = torch.tensor([N, K], dtype=torch.int64)
    return RoundedWeight(tensors, (lost / total) ** 0.5 if total else 0.0)


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
    zero = torch.zeros_like(cover)
    return _best(x, cover, [zero] * len(ratios), (-half, half - 1), dtype, ratios)


def _asymmetric(
    x: torch.Tensor, bits: int, dtype: torch.dtype, ratios: tuple[float, ...]
) -> Rounded:
    """Codes in ``0 .. 2**bits - 1``; zero is always a code, so the range takes it in."""
    top = float((1 << bits) - 1)
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    cover = (x.amax(-1, keepdim=True).clamp(min=0.0) - low) / top
    zeros = [
        (-low * ratio / _stored(cover * ratio, dtype)).round_().clamp_(0.0, top) for ratio in ratios
    ]
    return _best(x, cover, zeros, (0.0, top), dtype, ratios)


def _best(
    x: torch.Tensor,
    cover: torch.Tensor,
    zeros: list[torch.Tensor],
    codes: tuple[float, float],
    dtype: torch.dtype,
    ratios: tuple[float, ...],
) -> Rounded:
    """The codes with the ratio that loses least, group by group."""
    scale, zero = _stored(cover * ratios[0], dtype), zeros[0]
    work = torch.empty_like(x)
    error = _error(_codes(x, scale, zero, codes, work), x, scale, zero)
    for ratio, other_zero in zip(ratios[1:], zeros[1:], strict=True):
        other = _stored(cover * ratio, dtype)
        other_error = _error(_codes(x, other, other_zero, codes, work), x, other, other_zero)
        better = other_error < error
        scale = torch.where(better, other, scale)
        zero = torch.where(better, other_zero, zero)
        error = torch.where(better, other_error, error)
    return _codes(x, scale, zero, codes, work), scale, zero, error


def _stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scale`` as it will be read back; 1 for a group of zeros."""
    least = torch.finfo(dtype).tiny
    kept = scale.clamp(min=least).to(dtype).to(torch.float32)
    return torch.where(scale == 0, torch.ones_like(scale), kept)


def _codes(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    codes: tuple[float, float],
    work: torch.Tensor,
) -> torch.Tensor:
    return torch.div(x, scale, out=work).round_().add_(zero).clamp_(*codes)


def _error(
    q: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
) -> torch.Tensor:
    """Squared error of each group; overwrites ``q``."""
    return q.sub_(zero).mul_(scale).sub_(x).square_().sum(-1, keepdim=True)
