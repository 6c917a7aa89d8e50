"""e4m3fn as e4m3fnuz, the 8-bit float that AMD's gfx942 multiplies.

The exponent's bias is 8 instead of 7, so the same bits are worth half, and every finite value of
e4m3fn has its half in e4m3fnuz. Three codes differ: there is no -0, whose code (0x80) is NaN, and
NaN's codes (0x7f, 0xff) are numbers. Source: "8-bit Numerical Formats for Deep Neural Networks",
arXiv 2206.02915.
"""

from __future__ import annotations

import torch

__all__ = ["e4m3fn_to_fnuz"]


def e4m3fn_to_fnuz(values: torch.Tensor) -> torch.Tensor:
    """Half of each value, exactly: the scale that goes with them is to be doubled.

    Args:
        values: float8_e4m3fn.

    Returns:
        float8_e4m3fnuz of the same shape.
    """
    codes = values.view(torch.uint8)
    nan = (codes & 0x7F) == 0x7F
    codes = codes.masked_fill(codes == 0x80, 0).masked_fill(nan, 0x80)
    return codes.view(torch.float8_e4m3fnuz)
