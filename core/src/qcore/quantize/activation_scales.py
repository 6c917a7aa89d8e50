"""`ActivationScales`: what calibration found, and the tensors that a checkpoint gets of it.

=================  ==================  ==========================================================
scheme             tensor              value
=================  ==================  ==========================================================
int8-static        input_scale         ``c / 127``, where -c ... c is the range
int8-static-asym   input_scale         ``(high - low) / 255``, the range taking in zero
                   input_zero_point    ``-128 - round(low / input_scale)``
fp8-static         input_scale         ``c / 448``
nvfp4              input_global_scale  ``448 * 6 / c``, by which compressed-tensors divides
=================  ==================  ==========================================================
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qcore.errors import CheckpointError, ConfigError
from qcore.numerics.activation_quant import fp8_max
from qcore.quantize.float_rounding import nvfp4_global_scale
from qcore.quantize.scheme import QuantizeScheme

__all__ = ["ActivationRange", "ActivationScales", "check_scales"]

_E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class ActivationRange:
    """What the scale of a layer's input covers; what lies outside saturates.

    Attributes:
        low: the least value.
        high: the greatest.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ConfigError(f"the range {self.low} ... {self.high} is none of finite numbers")

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class ActivationScales:
    """The range of every linear layer's input.

    Attributes:
        scheme: the name of the scheme that they are for.
        observer: how they were found: ``minmax``, ``percentile`` or ``mse``.
        ranges: by the name of the module.
    """

    scheme: str
    observer: str
    ranges: Mapping[str, ActivationRange]

    def tensors(self, layer: str, scheme: QuantizeScheme) -> dict[str, torch.Tensor]:
        """A layer's tensors, by the names that compressed-tensors gives them.

        Raises:
            ConfigError: the layer was not calibrated, or for another scheme.
        """
        if not scheme.calibrated:
            return {}
        if str(scheme) != self.scheme and self.observer != "minmax":
            raise ConfigError(
                f"scales: {layer} is to be {scheme}, but the scales were found for {self.scheme} "
                f"with the observer {self.observer}; only those of minmax serve every scheme"
            )
        found = self.ranges.get(layer)
        if found is None:
            raise ConfigError(f"scales: {layer} was not calibrated (no text reached it?)")
        if scheme.weights == "nvfp4":
            return {"input_global_scale": nvfp4_global_scale(torch.tensor(found.amax))}
        if scheme.weights != "int":
            return {"input_scale": _one(found.amax / fp8_max(_E4M3))}
        if scheme.symmetric_inputs:
            return {"input_scale": _one(found.amax / 127.0)}
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        scale = _one((high - low) / 255.0)
        zero = torch.round(-128.0 - low / scale.double()).clamp(-128, 127)
        return {"input_scale": scale, "input_zero_point": zero.to(torch.int8)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as JSON."""
        ranges = {name: [found.low, found.high] for name, found in self.ranges.items()}
        values = {"scheme": self.scheme, "observer": self.observer, "ranges": ranges}
        Path(path).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ActivationScales:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file holds something else.
        """
        from qcore.models.checkpoint import read_json_object

        values = read_json_object(Path(path))
        scheme, observer, ranges = (values.get(key) for key in ("scheme", "observer", "ranges"))
        if not (isinstance(scheme, str) and isinstance(observer, str) and isinstance(ranges, dict)):
            raise CheckpointError(f"{path}: no scales: scheme, observer and ranges are needed")
        found = {}
        for name, pair in ranges.items():
            numbers = isinstance(pair, list) and all(type(v) in (int, float) for v in pair)
            if not numbers or len(pair) != 2:
                raise CheckpointError(f"{path}: the range of {name} is {pair!r}; two numbers")
            found[str(name)] = ActivationRange(float(pair[0]), float(pair[1]))
        return cls(scheme, observer, found)


def check_scales(
    layers: Iterable[tuple[str, QuantizeScheme]], scales: ActivationScales | None, *, at_load: bool
) -> None:
    """Check that every layer has the scales that its scheme needs, before any work.

    Args:
        layers: names of modules and what they are rounded to.
        scales: what there is.
        at_load: whether a model is made and no file: then the tensor's scale of NVFP4 can be
            computed for each token.

    Raises:
        ConfigError: a layer's are missing, or there are scales and no layer takes any.
    """
    needing = [(name, scheme) for name, scheme in layers if scheme.calibrated]
    if scales is not None:
        if not needing:
            raise ConfigError("scales: no layer's scheme has calibrated activations")
        for name, scheme in needing:
            scales.tensors(name, scheme)
        return
    for name, scheme in needing:
        if scheme.needs_calibration or not at_load:
            weight_only = "nvfp4-weight-only" if scheme.weights == "nvfp4" else "int8 or fp8"
            raise ConfigError(
                f"scheme {scheme}: {name} needs an activation scale from calibration: give scales= "
                "(qcore.quantize.calibrate makes them) or --calibrate TEXTFILE; "
                f"{weight_only} needs none"
            )


def _one(value: float) -> torch.Tensor:
    """A scale; 1 where nothing but zeros was seen."""
    scale = torch.tensor([value], dtype=torch.float32)
    return torch.where(scale > 0, scale, torch.ones_like(scale))
