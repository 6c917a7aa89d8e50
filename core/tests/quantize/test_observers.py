"""Observers against numpy in float64, on the values themselves and not on a histogram."""

import numpy as np
import pytest
import torch
from qcore.errors import ConfigError, WeightError
from qcore.quantize.observers import (
    CLIPS,
    InputHistogram,
    check_observer,
    observed_range,
)
from qcore.quantize.scheme import QuantizeScheme

INT8 = QuantizeScheme.parse("int8-static")
ASYM = QuantizeScheme.parse("int8-static-asym")
FP8 = QuantizeScheme.parse("fp8-static")
NVFP4 = QuantizeScheme.parse("nvfp4")
BIN = 1 / 64


def data(kind):
    rng = np.random.default_rng(7)
    x = rng.standard_normal(200_000)
    if kind == "outliers":
        x[1000] = 60.0
    if kind == "shifted":
        x = np.abs(x) + 0.3
        x[1000] = 60.0
    if kind == "tiny":
        x *= 1e-30
    return x.astype(np.float32)


def histogram(x, parts=5):
    found = InputHistogram()
    for part in np.array_split(x, parts):
        found.add(torch.from_numpy(part.copy()))
    return found


def int8_error(x, low, high):
    """Squared error of int8 with the range, in float64."""
    x = x.astype(np.float64)
    if low == -high:
        scale = high / 127
        codes = np.clip(np.round(x / scale), -127, 127)
    else:
        scale = (high - low) / 255
        zero = -128 - np.round(low / scale)
        codes = np.clip(np.round(x / scale) + zero, -128, 127) - zero
    return ((codes * scale - x) ** 2).sum()


def fp8_error(x, high):
    """The same of e4m3: three bits of mantissa, the last power of two ends at 448."""
    scaled = np.clip(x.astype(np.float64) / (high / 448), -448, 448)
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(scaled), 1e-30))), -6)
    step = 2.0 ** (exponent - 3)
    return (((np.round(scaled / step) * step) * (high / 448) - x.astype(np.float64)) ** 2).sum()


KINDS = ["normal", "outliers", "shifted", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [INT8, ASYM, FP8, NVFP4])
def test_minmax_is_exact(kind, scheme):
    x = data(kind)
    found = observed_range(histogram(x), "minmax", scheme)
    assert (found.low, found.high) == (x.min(), x.max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [51.0, 90.0, 99.0, 99.9, 100.0])
def test_percentile_of_the_magnitudes(kind, percentile):
    x = data(kind)
    found = observed_range(histogram(x), "percentile", INT8, percentile)
    exact = np.quantile(np.abs(x.astype(np.float64)), percentile / 100, method="inverted_cdf")
    assert found.low == -found.high
    assert exact <= found.high <= exact * (1 + BIN)
    assert (np.abs(x) <= found.high).mean() >= percentile / 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_at_both_ends(kind, percentile):
    x = data(kind).astype(np.float64)
    found = observed_range(histogram(data(kind)), "percentile", ASYM, percentile)
    part = percentile / 100
    low = min(np.quantile(x, 1 - part, method="inverted_cdf"), 0.0)
    high = max(np.quantile(x, part, method="inverted_cdf"), 0.0)
    assert found.low == pytest.approx(low, rel=BIN)
    assert found.high == pytest.approx(high, rel=BIN)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_of_int8_takes_the_best_clip(kind):
    x = data(kind)
    found = observed_range(histogram(x), "mse", INT8)
    errors = [int8_error(x, -np.abs(x).max() * c, np.abs(x).max() * c) for c in CLIPS]
    mine = int8_error(x, found.low, found.high)
    # The histogram stands for the values to 1/64; near the best clip the error is flat.
    assert mine <= min(errors) * 1.02
    assert mine <= errors[0] * 1.001
    if kind == "outliers":
        # One value A and n small ones: clipped at c, (A - c)**2 + n * (c / 127)**2 / 12 is lost.
        # The best c leaves 1 / (1 + n / (12 * 127**2)) of what c = A does, here 0.49.
        assert mine < 0.55 * errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_mse_of_fp8_takes_the_best_clip(kind):
    x = data(kind)
    found = observed_range(histogram(x), "mse", FP8)
    errors = [fp8_error(x, np.abs(x).max() * c) for c in CLIPS]
    assert fp8_error(x, found.high) <= min(errors) * 1.02
    assert fp8_error(x, found.high) <= errors[0] * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_mse_with_zero_points_is_not_worse_than_minmax(kind):
    x = data(kind)
    found = observed_range(histogram(x), "mse", ASYM)
    whole = int8_error(x, min(x.min(), 0.0), max(x.max(), 0.0))
    assert int8_error(x, found.low, found.high) <= whole * 1.001
    if kind == "shifted":
        assert found.low == 0.0
        # As above, with 255 steps over the range: 1 / (1 + n / (12 * 255**2)), here 0.80.
        assert int8_error(x, found.low, found.high) < 0.85 * whole


def test_how_the_values_are_cut_up_does_not_matter():
    x = data("outliers")
    one, other = histogram(x, 1), histogram(x[::-1].copy(), 37)
    for observer in ("minmax", "percentile", "mse"):
        assert observed_range(one, observer, INT8) == observed_range(other, observer, INT8)
    assert one.count == other.count == len(x)


def test_every_float_has_a_bin():
    finite = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.0])
    found = InputHistogram()
    found.add(finite)
    edges, counts = found.magnitudes()
    assert counts.sum() == found.count == 7
    assert counts[0] == 4
    assert edges[0] > 1e-45
    values, weights = found.values()
    assert weights.sum() == 7
    assert values.isfinite().all()


def test_nothing_but_zeros():
    found = histogram(np.zeros(10, dtype=np.float32))
    for observer in ("minmax", "percentile", "mse"):
        for scheme in (INT8, ASYM, FP8):
            # The least bin reaches up to 2**-132.
            assert observed_range(found, observer, scheme).amax < 1e-39


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(value):
    found = InputHistogram()
    with pytest.raises(WeightError, match="NaN or infinity"):
        found.add(torch.tensor([1.0, value]))
    assert found.count == 0


@pytest.mark.parametrize(
    ("observer", "scheme", "percentile", "message"),
    [
        ("max", INT8, 99.9, "observer 'max' is not known; known: minmax, percentile, mse"),
        ("minmax", QuantizeScheme.parse("int8"), 99.9, "no calibrated activations"),
        ("percentile", INT8, 101.0, "percentile is 101"),
        ("percentile", INT8, 3.0, "percentile is 3"),
        ("mse", NVFP4, 99.9, "use minmax or percentile"),
    ],
)
def test_what_cannot_be_observed(observer, scheme, percentile, message):
    with pytest.raises(ConfigError, match=message):
        check_observer(observer, scheme, percentile)
