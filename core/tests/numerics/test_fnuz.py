"""Every code of e4m3fn, against the values that torch has for both kinds."""

from __future__ import annotations

import torch
from qcore.numerics.fnuz import e4m3fn_to_fnuz


def test_half_of_every_value() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    halves = e4m3fn_to_fnuz(codes)
    assert halves.dtype == torch.float8_e4m3fnuz
    assert halves.shape == codes.shape
    torch.testing.assert_close(halves.float() * 2, codes.float(), rtol=0, atol=0, equal_nan=True)
    assert int(torch.isnan(halves.float()).sum()) == 2


def test_the_argument_is_not_changed() -> None:
    codes = torch.tensor([0x80, 0x7F], dtype=torch.uint8)
    e4m3fn_to_fnuz(codes.view(torch.float8_e4m3fn))
    assert codes.tolist() == [0x80, 0x7F]
