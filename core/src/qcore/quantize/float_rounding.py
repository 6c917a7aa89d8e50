"""Groups of weights to e4m3 and e2m1 codes, nearest first.

A scale in float (FP8) is the one that covers the group: the relative error of e4m3 is the same
wherever the values lie in its range, so there is nothing to search. The same holds for MXFP8. With
e2m1 it is not so: `mxfp4` may try the powers of two beside the first, `nvfp4` several parts of the
scale that puts the largest magnitude at 6; half as much again puts it at 4, where the steps are
finer. Codes are always made from the scale *as it is stored*.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from qcore.numerics.activation_quant import fp8_max, mx_scale
from qcore.numerics.small_floats import (
    E2M1_MAX,
    decode_e8m0,
    encode_e2m1,
    round_e2m1,
)
from qcore.quantize.integer_rounding import stored_scale

__all__ = ["NVFP4_RATIOS", "nvfp4_global_scale", "round_fp8", "round_mx", "round_nvfp4"]

NVFP4_RATIOS = (1.0, 1.5, 1.4, 1.3, 1.2, 1.15, 1.1, 1.05, 0.95, 0.9, 0.85, 0.8)
"""Parts of the scale that puts the largest magnitude at 6. The first wins ties."""

_MX_OFFSETS = (0, 1, -1)
_E4M3 = torch.float8_e4m3fn
_LEAST_E4M3 = 2.0**-9
_EMAX = {"mxfp8": 8, "mxfp4": 2}

Rounded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Codes [groups, size] as they are stored but for packing, scales [groups, 1], squared errors."""


def round_fp8(x: torch.Tensor, amax: torch.Tensor, dtype: torch.dtype) -> Rounded:
    """Round to e4m3.

    Args:
        x: float32 [groups, size].
        amax: the largest magnitude that each scale is to cover, [groups, 1] or [1, 1].
        dtype: that scales are stored in.
    """
    limit = fp8_max(_E4M3)
    scale = stored_scale(amax / limit, dtype)
    codes = (x / scale).clamp_(-limit, limit).to(_E4M3)
    return codes, scale, _error(x, codes.to(torch.float32).mul_(scale))


def round_mx(x: torch.Tensor, kind: str, search: bool) -> Rounded:
    """Round to MXFP8 or MXFP4, with e8m0 scales (uint8).

    Args:
        x: float32 [groups, 32].
        kind: ``mxfp8`` or ``mxfp4``.
        search: of MXFP4, try the powers of two above and below too.
    """
    first = mx_scale(x, _EMAX[kind])[:, None]

    def decoded(code: torch.Tensor) -> torch.Tensor:
        return decode_e8m0(code)

    if kind == "mxfp8":
        limit = fp8_max(_E4M3)
        codes = (x / decoded(first)).clamp_(-limit, limit).to(_E4M3)
        return codes, first, _error(x, codes.to(torch.float32).mul_(decoded(first)))
    offsets = _MX_OFFSETS if search else _MX_OFFSETS[:1]
    tried = [(first.to(torch.int16) + offset).clamp(0, 254).to(torch.uint8) for offset in offsets]
    code, error = _best_e2m1(x, tried, decoded)
    return encode_e2m1(x / decoded(code)), code, error


def nvfp4_global_scale(amax: torch.Tensor) -> torch.Tensor:
    """``448 * 6 / amax``, by which compressed-tensors divides: float32 [1]; 1 for zeros."""
    amax = amax.to(torch.float32).reshape(1)
    scale = fp8_max(_E4M3) * E2M1_MAX / amax
    return torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))


def round_nvfp4(x: torch.Tensor, global_scale: torch.Tensor, search: bool) -> Rounded:
    """Round to NVFP4, with e4m3 scales.

    Args:
        x: float32 [groups, 16].
        global_scale: of the tensor, as `nvfp4_global_scale` makes it.
        search: try all of `NVFP4_RATIOS`.
    """
    factor = 1.0 / global_scale  # as it is read back
    cover = x.abs().amax(-1, keepdim=True) / E2M1_MAX * global_scale
    ratios = NVFP4_RATIOS if search else NVFP4_RATIOS[:1]
    tried = [(cover * ratio).clamp(_LEAST_E4M3, fp8_max(_E4M3)).to(_E4M3) for ratio in ratios]

    def decoded(scale: torch.Tensor) -> torch.Tensor:
        return scale.to(torch.float32) * factor

    scale, error = _best_e2m1(x, tried, decoded)
    return encode_e2m1(x / decoded(scale)), scale, error


def _best_e2m1(
    x: torch.Tensor,
    tried: list[torch.Tensor],
    decoded: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored scale that loses least, group by group, and what it loses."""
    best, *others = tried
    scale = decoded(best)
    error = _error(x, round_e2m1(x / scale).mul_(scale))
    for other in others:
        scale = decoded(other)
        other_error = _error(x, round_e2m1(x / scale).mul_(scale))
        better = other_error < error
        # On bytes: torch.where knows few operations of the small floats.
        chosen = torch.where(better, other.view(torch.uint8), best.view(torch.uint8))
        best, error = chosen.view(best.dtype), torch.where(better, other_error, error)
    return best, error


def _error(x: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Of each group; ``back`` is given up."""
    norm: torch.Tensor = torch.linalg.vector_norm(back.sub_(x), dim=-1, keepdim=True)
    return norm.square_()
