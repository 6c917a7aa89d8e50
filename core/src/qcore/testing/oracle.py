"""`Oracle`: what a layer's output is in float64, and how far from it a right kernel may be.

The allowance is the sum of what each rounding can contribute, with ``u`` the unit roundoff of a
dtype (half of its eps), ``a`` the rounded activations and ``w`` the dequantized weights:

accumulation
    ``g * sum(|a| * m)``, with ``g = n * u / (1 - n * u)`` for the ``n = K + 12`` roundings that an
    operand goes through at most: its scales, the product, the sums, the scales applied at the end,
    the bias. ``m`` is ``|w|``, or ``(|code| + |zero|) * scale`` where there are zero points,
    because a kernel may sum up codes and zero points separately; likewise the codes and minima of
    GGUF blocks, and ``|value| * scale + |offset|`` where there are
    offsets.
ties
    ``sum((high - low) * |w|)`` for activations that a kernel may round up or down
    (`qcore.testing.intervals`).
operands
    ``8 * u * sqrt(sum((a * w)**2))`` if the kernel declares (`Arithmetic`) that it rounds
    dequantized weights to a 16-bit dtype; the same for activations. By Hoeffding's inequality the
    sum exceeds it with a probability of 2 * exp(-32), as the signs of the inputs are random.
output
    ``u * |y|``, and once more for the product where there is a bias: a kernel may add the bias to
    the rounded product.
tolerance
    what an ``APPROXIMATE`` kernel declares, as a fraction of ``sqrt(sum((a * w)**2))``, the order
    of magnitude of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from qcore.kernels.base import LinearKernel
from qcore.layers import (
    CodebookLinearLayerConfig,
    GGUFLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
)
from qcore.numerics.dequantize import dequantize_weight, group_of_inputs, unpack_mp
from qcore.numerics.gguf_blocks import decode_blocks
from qcore.reference.linear import reference_linear
from qcore.registry.spec import Numerics
from qcore.testing.intervals import (
    Interval,
    activation_interval,
    int8_zero_point_magnitude,
)
from qcore.testing.tensors import input_dtype, output_dtype

__all__ = ["Arithmetic", "Expected", "Oracle"]

_HOEFFDING = 8.0


@dataclass(frozen=True)
class Arithmetic:
    """How a kernel computes, in so far as that decides how exact it can be.

    Attributes:
        accumulate: the dtype of its sums; or their unit roundoff, for hardware whose accumulators
            are no dtype of torch's.
        weights: the dtype to which it rounds dequantized weights before it multiplies; ``input``
            for the input's; None if it does not (float32 at least).
        activations: the same of (dequantized) activations.
    """

    accumulate: torch.dtype | float = torch.float32
    weights: torch.dtype | Literal["input"] | None = None
    activations: torch.dtype | Literal["input"] | None = None

    @classmethod
    def of(cls, kernel_class: type[LinearKernel[Any]]) -> Arithmetic:
        """What a kernel class says of itself."""
        return cls(kernel_class.accumulation, kernel_class.weight_rounding)


@dataclass(frozen=True)
class Expected:
    """A result and what is allowed around it.

    Attributes:
        value: float64 [..., N].
        parts: what each kind of rounding allows, by name, float64 [..., N].
    """

    value: torch.Tensor
    parts: Mapping[str, torch.Tensor]

    @property
    def allowed(self) -> torch.Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.parts.values())).sum(0)


class Oracle:
    """Expected results of one layer.

    Args:
        config: the layer.
        tensors: its canonical tensors, on the CPU.
        numerics: of the kernel; for ``WEIGHT_ONLY`` activations are not quantized.
        arithmetic: of the kernel.
        tolerance: of an ``APPROXIMATE`` kernel.
    """

    def __init__(
        self,
        config: MMLinearLayerConfig,
        tensors: Mapping[str, torch.Tensor],
        numerics: Numerics = Numerics.EXACT,
        arithmetic: Arithmetic | None = None,
        tolerance: float = 0.0,
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.arithmetic = arithmetic or Arithmetic()
        self.tolerance = tolerance
        self.weight_only = numerics is Numerics.WEIGHT_ONLY
        self.weight = dequantize_weight(config, tensors, torch.float64)
        self.magnitude = self.weight.abs()
        if isinstance(config, MPLinearLayerConfig):
            self.magnitude = _separate_magnitude(config, tensors)
        elif isinstance(config, GGUFLinearLayerConfig):
            parts = decode_blocks(tensors["weight"], config.qtype, torch.float64)
            self.magnitude = parts.magnitudes().reshape(self.weight.shape)
        elif isinstance(config, CodebookLinearLayerConfig) and config.has_offset:
            self.magnitude = _separate_offset(config, tensors)

    def expect(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> Expected:
        """The result for ``x`` [..., K] on the CPU, and what is allowed around it."""
        rows = x.reshape(-1, x.shape[-1])
        low, high = self._activations(rows)
        largest = torch.maximum(low.abs(), high.abs())
        product = self._value(rows, None)
        value = product if bias is None else product + bias.to(torch.float64)

        summed = (largest + self._zero_point_magnitude(rows)) @ self.magnitude.t()
        if bias is not None:
            summed = summed + bias.to(torch.float64).abs()
        norm = ((largest**2) @ (self.weight**2).t()).sqrt()
        parts = {
            "accumulation": self._growth() * summed,
            "ties": (high - low) @ self.weight.abs().t(),
            "operands": self._operands(largest, norm),
            "tolerance": self.tolerance * norm,
        }
        out = torch.finfo(output_dtype(self.config))
        least = out.smallest_normal * out.eps  # the spacing of subnormals
        before = torch.stack(list(parts.values())).sum(0)
        parts["output"] = out.eps / 2 * (value.abs() + before) + least
        if bias is not None:
            once = out.eps / 2 * (product.abs() + before) + least
            parts["output"] = parts["output"] * (1 + out.eps) + once
        shape = (*x.shape[:-1], value.shape[-1])
        return Expected(
            value.reshape(shape), {name: part.reshape(shape) for name, part in parts.items()}
        )

    # -- parts -------------------------------------------------------------------------------

    def _activations(self, rows: torch.Tensor) -> Interval:
        if self.weight_only:
            wide = rows.to(torch.float64)
            return wide, wide
        return activation_interval(self.config, self.tensors, rows)

    def _value(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.weight_only:
            return rows.to(torch.float64) @ self.weight.t()
        return reference_linear(
            self.config,
            self.tensors,
            rows,
            bias,
            compute_dtype=torch.float64,
            out_dtype=torch.float64,
        )

    def _zero_point_magnitude(self, rows: torch.Tensor) -> torch.Tensor | float:
        """What activations' zero points add to the terms of sums that are corrected afterwards."""
        if self.weight_only or not isinstance(self.config, Int8ScaledMMLinearLayerConfig):
            return 0.0
        return int8_zero_point_magnitude(self.config, self.tensors, rows.to(torch.float64))

    def _has_zeros(self) -> bool:
        return bool(
            getattr(self.config, "zero_points", False) or getattr(self.config, "has_offset", False)
        )

    def _growth(self) -> float:
        unit = self.arithmetic.accumulate
        u = torch.finfo(unit).eps / 2 if isinstance(unit, torch.dtype) else unit
        n = self.weight.shape[1] + 12
        if n * u < 0.01:
            return n * u / (1 - n * u)
        return float(_HOEFFDING * n**0.5 * u)  # the worst case would allow everything

    def _operands(self, activations: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        allowed = torch.zeros_like(norm)
        for declared, is_weight in (
            (self.arithmetic.weights, True),
            (self.arithmetic.activations, False),
        ):
            if declared is None:
                continue
            dtype = input_dtype(self.config) if declared == "input" else declared
            u = torch.finfo(dtype).eps / 2
            part = norm
            if is_weight and self._has_zeros():
                # code * scale and zero * scale may be rounded separately, then their difference.
                part = norm + ((activations**2) @ (self.magnitude**2).t()).sqrt()
            allowed = allowed + _HOEFFDING * u * part
        return allowed


def _separate_magnitude(
    config: MPLinearLayerConfig, tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """``(|code| + |zero|) * scale``, float64 [N, K]."""
    codes, zero = unpack_mp(config, tensors)
    groups = group_of_inputs(config, tensors.get("weight_g_idx"))
    scale = tensors["weight_scale"].double().abs()
    offset = zero.double() if isinstance(zero, torch.Tensor) else torch.full_like(scale, zero)
    if groups is not None:
        scale, offset = scale[:, groups], offset[:, groups]
    return (codes.double().abs() + offset) * scale


def _separate_offset(
    config: CodebookLinearLayerConfig, tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """``|value| * scale + |offset|``, float64 [N, K]."""
    packed = tensors["weight_packed"]
    magnitudes = {name: tensor.abs() for name, tensor in tensors.items()}
    return dequantize_weight(config, {**magnitudes, "weight_packed": packed}, torch.float64)
