"""Small floats in float64, from their definitions: values of codes, the nearest of a number."""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor
NAN = float("nan")


def _values(bits: int, mantissa_bits: int, bias: int) -> list[float]:
    """The magnitude of each code without its sign bit."""
    values = []
    for code in range(1 << (bits - 1)):
        exponent, mantissa = divmod(code, 1 << mantissa_bits)
        fraction = mantissa / (1 << mantissa_bits)
        if exponent == 0:
            values.append(math.ldexp(fraction, 1 - bias))
        else:
            values.append(math.ldexp(1 + fraction, exponent - bias))
    return values


_E2M1 = _values(4, 1, 1)
_E4M3 = _values(8, 3, 7)[:127]  # the last is NaN
_FNUZ = _values(8, 3, 8)

# Of each code, and to what numbers are rounded (ROCm quantizes to 224, not to the 240 there is).
DECODED = {
    "e2m1": [*_E2M1, *(-v for v in _E2M1)],
    "e4m3": [*_E4M3, NAN, *(-v for v in _E4M3), NAN],
    "e4m3fnuz": [*_FNUZ, NAN, *(-v for v in _FNUZ[1:])],
}
_ROUNDED = {"e2m1": _E2M1, "e4m3": _E4M3, "e4m3fnuz": [v for v in _FNUZ if v <= 224]}


def decode(codes: Tensor, kind: str) -> Tensor:
    return torch.tensor(DECODED[kind], dtype=torch.float64)[codes.long()]


def decode_e8m0(codes: Tensor) -> Tensor:
    values = [math.ldexp(1.0, code - 127) for code in range(255)] + [NAN]
    return torch.tensor(values, dtype=torch.float64)[codes.long()]


def nearest(x: Tensor, kind: str) -> Tensor:
    """Ties to the even code; beyond the largest, the largest; NaN stays."""
    grid = torch.tensor(_ROUNDED[kind], dtype=torch.float64)
    size = x.double().abs().clamp(max=float(grid[-1])).contiguous()
    above = torch.searchsorted(grid, size.nan_to_num(0.0)).clamp(1, len(grid) - 1)
    below = above - 1
    up, down = grid[above] - size, size - grid[below]
    pick = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return torch.where(x.isnan(), x.double(), grid[pick] * torch.where(x < 0, -1.0, 1.0))


def _quantized(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    return nearest(x / scale, kind) * scale.double()


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def round_e4m3(
    x: Tensor, kind: str, group: int, scale: Tensor | None, bound: float = math.inf
) -> Tensor:
    """Scales in float32, as checkpoints have them."""
    x, limit = x.float(), 224.0 if kind == "e4m3fnuz" else 448.0
    if scale is not None:
        return _quantized(x, scale.float(), kind)
    if group == 0:
        return _quantized(x, _or_one(x.abs().max().clamp(max=bound) / limit), kind)
    if group == -1:
        return _quantized(x, _or_one(x.abs().amax(1, keepdim=True).clamp(max=bound) / limit), kind)
    parts = [
        _quantized(part, _or_one(part.abs().amax(1, keepdim=True) / limit), kind)
        for part in x.split(group, dim=1)
    ]
    return torch.cat(parts, 1)


def round_mx(x: Tensor, kind: str) -> Tensor:
    """Blocks of 32, scaled by a power of two: what brings 1.75 and less to the largest exponent."""
    top = 2 if kind == "e2m1" else 8
    out = []
    for block in x.float().split(32, dim=1):
        scales = []
        for amax in block.abs().amax(1).tolist():
            if not math.isfinite(amax):
                scales.append(NAN)
                continue
            exponent = -127
            if amax > 0:
                mantissa, exponent = math.frexp(amax)
                exponent -= 1 if mantissa < 0.875 else 0
                exponent = max(exponent - top, -127)
            scales.append(math.ldexp(1.0, exponent))
        out.append(_quantized(block.double(), torch.tensor(scales)[:, None].double(), kind))
    return torch.cat(out, 1)


def round_nvfp4(x: Tensor, group: int, outer: Tensor | None) -> Tensor:
    x = x.float()
    if outer is None:
        amax = x.abs().max() if group == 0 else x.abs().amax(1, keepdim=True)
        outer = _or_one(amax / (448.0 * 6.0))
    outer = outer.float().reshape(-1, 1)
    out = []
    for block in x.split(16, dim=1):
        inner = nearest(block.abs().amax(1, keepdim=True) / 6.0 / outer, "e4m3").float()
        scale = inner * outer
        codes = torch.where(scale > 0, block / scale, torch.zeros_like(block))
        out.append(nearest(codes, "e2m1") * scale.double())
    return torch.cat(out, 1)


def rounded(
    x: Tensor, activations: str, group: int, scale: Tensor | None, bound: float = math.inf
) -> Tensor:
    """What the op makes of x [M, K], in float64."""
    if activations in ("e4m3", "e4m3fnuz"):
        return round_e4m3(x, activations, group, scale, bound)
    if activations == "nvfp4":
        return round_nvfp4(x, group, scale)
    if activations:
        return round_mx(x, "e2m1" if activations == "mxfp4" else "e4m3")
    return x.double()
