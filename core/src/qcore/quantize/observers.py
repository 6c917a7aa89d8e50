"""What is kept of a layer's input while text passes through, and the range that is made of it.

An `InputHistogram` has a bin for each sign, each power of two and each of 64 steps within it: the
first bits of a float32. So it needs no range beforehand, costs the same for any amount of text, and
the order of the text does not matter. A bin is at most 1/64 of its values wide; the least and the
greatest value are kept exactly. Three observers choose a range from it:

==========  ========================================================================================
minmax      all that was seen
percentile  the part ``percentile`` of the magnitudes; of asymmetric int8, as much at each end
mse         of `CLIPS` of the whole range, that with the least squared error of the rounded values
==========  ========================================================================================
"""

from __future__ import annotations

import torch

from qcore.errors import ConfigError, WeightError
from qcore.numerics.activation_quant import fp8_max
from qcore.quantize.activation_scales import ActivationRange
from qcore.quantize.scheme import QuantizeScheme

__all__ = ["CLIPS", "OBSERVERS", "InputHistogram", "check_observer", "observed_range"]

OBSERVERS = ("minmax", "percentile", "mse")

CLIPS: tuple[float, ...] = tuple(2.0 ** (-i / 16) for i in range(8 * 16 + 1))
"""Parts of the range that `mse` tries: from all of it down to 1/256, the first wins ties."""

_STEPS = 6
_SHIFT = 23 - _STEPS
_BINS = 255 << _STEPS  # of one sign: every finite float32
_POINTS = 8  # values that stand for a bin


class InputHistogram:
    """Counts of the values of a layer's input.

    Attributes:
        low: the least value seen.
        high: the greatest.
        count: of values.
    """

    def __init__(self) -> None:
        self.low = float("inf")
        self.high = float("-inf")
        self.count = 0
        self._counts = torch.zeros(2 * _BINS, dtype=torch.int64)

    def add(self, x: torch.Tensor) -> None:
        """Count the values of ``x``.

        Raises:
            WeightError: there is NaN or infinity among them.
        """
        if x.numel() == 0:
            return
        values = x.detach().reshape(-1).to(torch.float32)
        low, high = (float(v) for v in torch.aminmax(values))
        if not (low - low == 0 and high - high == 0):
            raise WeightError("NaN or infinity in the activations")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.numel()
        bits = values.view(torch.int32)
        bins = (bits & 0x7FFFFFFF) >> _SHIFT
        bins += (bits < 0).to(torch.int32) * _BINS
        self._counts += torch.bincount(bins, minlength=2 * _BINS).cpu()

    def magnitudes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Upper edges of the bins of ``|x|`` (float64, rising) and their counts."""
        return _edges(), self._counts[:_BINS] + self._counts[_BINS:]

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of either sign that stand for what was seen (float64), and their weights.

        Each bin that holds any is taken for `_POINTS` values, evenly spread over it.
        """
        edges = torch.cat((torch.zeros(1, dtype=torch.float64), _edges()))
        lower, width = edges[:-1], edges.diff()
        found, weights = [], []
        for sign, counts in ((1.0, self._counts[:_BINS]), (-1.0, self._counts[_BINS:])):
            used = counts.nonzero().reshape(-1)
            for point in range(_POINTS):
                value = lower[used] + width[used] * ((point + 0.5) / _POINTS)
                found.append(sign * value)
                weights.append(counts[used].double() / _POINTS)
        return torch.cat(found).clamp(self.low, self.high), torch.cat(weights)


def _edges() -> torch.Tensor:
    bits = torch.arange(1, _BINS + 1, dtype=torch.int32) << _SHIFT
    # The last edge is infinity; it is never a range, which the greatest value bounds.
    return bits.view(torch.float32).double()


def check_observer(observer: str, scheme: QuantizeScheme, percentile: float) -> None:
    """Raise `ConfigError` for an observer that does not exist, or says nothing for the scheme."""
    if observer not in OBSERVERS:
        raise ConfigError(f"observer {observer!r} is not known; known: {', '.join(OBSERVERS)}")
    if not scheme.calibrated:
        raise ConfigError(
            f"scheme {scheme} has no calibrated activations; "
            "int8-static, int8-static-asym, fp8-static and nvfp4 have"
        )
    if not 50.0 < percentile <= 100.0:
        raise ConfigError(f"percentile is {percentile:g}; it must be above 50 and at most 100")
    if observer == "mse" and scheme.weights == "nvfp4":
        raise ConfigError(
            "observer 'mse' with nvfp4: the calibrated scale only bounds the scales of blocks, so "
            "it rounds no value; use minmax or percentile"
        )


def observed_range(
    histogram: InputHistogram, observer: str, scheme: QuantizeScheme, percentile: float = 99.9
) -> ActivationRange:
    """The range that an observer makes of a histogram.

    Args:
        histogram: of at least one value.
        observer: one of `OBSERVERS`.
        scheme: of the layer.
        percentile: in percent, of the observer ``percentile``.
    """
    whole = ActivationRange(histogram.low, histogram.high)
    symmetric = scheme.symmetric_inputs
    if observer == "minmax":
        return whole
    if observer == "percentile":
        if symmetric:
            clip = min(_quantile(*histogram.magnitudes(), percentile), whole.amax)
            return ActivationRange(-clip, clip)
        return _both_ends(histogram, percentile)
    values, weights = histogram.values()
    if symmetric:
        limit = 127.0 if scheme.weights == "int" else fp8_max(torch.float8_e4m3fn)
        clips = [whole.amax * part for part in CLIPS]
        errors = [_symmetric_error(values, weights, clip / limit, scheme) for clip in clips]
        clip = clips[errors.index(min(errors))]
        return ActivationRange(-clip, clip)
    low, high = min(whole.low, 0.0), max(whole.high, 0.0)
    # One end after the other: outliers are mostly on one side.
    for _ in range(2):
        high = _best_end(values, weights, low, high, upper=True)
        low = _best_end(values, weights, low, high, upper=False)
    return ActivationRange(low, high)


def _quantile(edges: torch.Tensor, counts: torch.Tensor, percentile: float) -> float:
    """The least edge below which that part of the values lies."""
    below = counts.cumsum(0).double()
    wanted = below[-1] * (percentile / 100.0)
    index = int(torch.searchsorted(below, wanted))
    return float(edges[min(index, len(edges) - 1)])


def _both_ends(histogram: InputHistogram, percentile: float) -> ActivationRange:
    """Leave ``100 - percentile`` percent beyond each end at most."""
    values, weights = histogram.values()
    order = values.argsort()
    values, below = values[order], weights[order].cumsum(0)
    total = float(below[-1])
    low, high = (
        values[min(int(torch.searchsorted(below, total * part)), len(values) - 1)]
        for part in (1.0 - percentile / 100.0, percentile / 100.0)
    )
    return ActivationRange(min(float(low), 0.0), max(float(high), 0.0))


def _symmetric_error(
    values: torch.Tensor, weights: torch.Tensor, scale: float, scheme: QuantizeScheme
) -> float:
    if scale == 0:
        return 0.0
    steps = values / scale
    if scheme.weights == "int":
        codes = steps.round().clamp_(-127, 127)
    else:
        limit = fp8_max(torch.float8_e4m3fn)
        codes = steps.clamp_(-limit, limit).to(torch.float8_e4m3fn).double()
    return float(((codes * scale - values).square() * weights).sum())


def _best_end(
    values: torch.Tensor, weights: torch.Tensor, low: float, high: float, *, upper: bool
) -> float:
    """The upper or the lower end with the least error, the other end kept."""
    end = high if upper else low
    ends = [end * part for part in CLIPS]
    errors = [_asymmetric_error(values, weights, *((low, e) if upper else (e, high))) for e in ends]
    return ends[errors.index(min(errors))]


def _asymmetric_error(
    values: torch.Tensor, weights: torch.Tensor, low: float, high: float
) -> float:
    scale = (high - low) / 255.0
    if scale == 0:
        return float((values.square() * weights).sum())
    zero = -128 - round(low / scale)
    codes = ((values / scale).round() + zero).clamp_(-128, 127) - zero
    return float(((codes * scale - values).square() * weights).sum())
