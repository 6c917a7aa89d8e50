import math

import numpy as np
import pytest
import torch
from qcore.numerics.small_floats import decode_e2m1, decode_e8m0, encode_e2m1, encode_e8m0


def e2m1_values():
    """From the definition: sign, two exponent bits with bias 1, one mantissa bit."""
    values = []
    for code in range(16):
        sign = -1.0 if code & 8 else 1.0
        exponent, mantissa = (code >> 1) & 3, code & 1
        magnitude = mantissa * 0.5 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        values.append(sign * magnitude)
    return values


def test_e2m1_decodes_as_defined():
    assert decode_e2m1(torch.arange(16, dtype=torch.uint8)).tolist() == e2m1_values()


def test_e2m1_rounds_to_nearest_even():
    table = np.array(e2m1_values()[:8])
    for value in np.linspace(-8, 8, 1601):
        distance = np.abs(table - abs(value))
        nearest = np.flatnonzero(np.isclose(distance, distance.min(), atol=1e-12))
        expected = nearest[0] if len(nearest) == 1 else next(i for i in nearest if i % 2 == 0)
        code = int(encode_e2m1(torch.tensor([value]))[0])
        assert code & 7 == expected, value
        if value != 0:
            assert bool(code & 8) == (value < 0)


def test_e8m0():
    codes = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    values = decode_e8m0(codes, torch.float64).tolist()
    assert values[:5] == [2.0**-127, 2.0**-126, 1.0, 2.0, 2.0**127]
    assert math.isnan(values[5])


@pytest.mark.parametrize("emax", [2, 8])
def test_e8m0_scales_bring_the_maximum_into_range(emax):
    amax = torch.tensor([1e-30, 0.1, 1.0, 1.999, 2.0, 448.0, 1e30])
    scale = decode_e8m0(encode_e8m0(amax, emax), torch.float64)
    ratio = amax.double() / scale
    assert bool(((ratio >= 2.0**emax) & (ratio < 2.0 ** (emax + 1))).all())
    assert encode_e8m0(torch.tensor([0.0, float("inf"), float("nan")]), emax).tolist() == [
        0,
        255,
        255,
    ]
