"""e2m1 (FP4) and e8m0 (the scales of the MX formats).

e2m1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign in bit 3; e8m0 is a biased exponent,
``2**(code - 127)``, with 255 for NaN. Source: OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

import torch

__all__ = [
    "E2M1_MAX",
    "E2M1_VALUES",
    "decode_e2m1",
    "decode_e8m0",
    "encode_e2m1",
    "encode_e8m0",
    "round_e2m1",
]

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitude of each 3-bit code."""

E2M1_MAX = 6.0

# Between two neighbours the tie goes to the even code: (midpoint, whether the tie rounds up).
_E2M1_STEPS = (
    (0.25, False),
    (0.75, True),
    (1.25, False),
    (1.75, True),
    (2.5, False),
    (3.5, True),
    (5.0, False),
)


def decode_e2m1(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values of 4-bit codes (uint8, one to a byte)."""
    magnitudes = torch.tensor(E2M1_VALUES, dtype=dtype, device=codes.device)
    table = torch.cat((magnitudes, -magnitudes))
    return table[codes.long()]


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    """4-bit codes (uint8) of the nearest e2m1 values: ties to even, saturating at 6, NaN to 6."""
    magnitude = values.abs()
    codes = torch.zeros_like(values, dtype=torch.uint8)
    for midpoint, tie_up in _E2M1_STEPS:
        above = magnitude >= midpoint if tie_up else magnitude > midpoint
        codes += above.to(torch.uint8)
    codes = torch.where(torch.isnan(values), torch.full_like(codes, 7), codes)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def round_e2m1(values: torch.Tensor) -> torch.Tensor:
    """The nearest e2m1 values, ties and the rest as in `encode_e2m1`; NaN stays NaN.

    The steps are 0.5 below 2, 1 below 4 and 2 above, and a tie between two of the same step goes to
    the even number of steps, whose code is even.
    """
    magnitude = values.abs()
    step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
    return (values / step).round_().mul_(step).clamp_(-E2M1_MAX, E2M1_MAX)


def decode_e8m0(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``2**(code - 127)``; 255 is NaN."""
    bits = codes.to(torch.int32) << 23  # a float32's exponent, but for the least: that is subnormal
    bits = bits.masked_fill(codes == 0, 1 << 22).masked_fill(codes == 255, 0x7FC00000)
    return bits.view(torch.float32).to(dtype)


def encode_e8m0(amax: torch.Tensor, emax: int) -> torch.Tensor:
    """The MX scale of blocks whose largest magnitude is ``amax``.

    ``2**(floor(log2(amax)) - emax)``, section 6.3 of the specification.

    Args:
        amax: float, not negative.
        emax: the exponent of the element type's largest value: 2 for e2m1, 8 for e4m3.

    Returns:
        uint8 codes; the least (0) for an all-zero block, 255 (NaN) where ``amax`` is not finite.
    """
    exponent = torch.frexp(amax.to(torch.float32)).exponent - 1  # floor(log2), exact
    code = (exponent - emax + 127).clamp(0, 254)
    code = torch.where(amax == 0, torch.zeros_like(code), code)
    return torch.where(torch.isfinite(amax), code, torch.full_like(code, 255)).to(torch.uint8)
