"""W8A8 ("int8"): int8 weights and int8 activations.

Canonical layout, K inputs, N outputs:

================  ===================  =======================================================
weight            int8 [N, K]
weight_scale      float [N, 1], [1]    per channel; per tensor, or [parts] for a fused layer
input_scale       float32 [] or [1]    only if static; [parts] for a fused layer
input_zero_point  int32 [] or [1]      only if static and asymmetric; as input_scale
================  ===================  =======================================================

A fused layer's scales are spread over its channels before a kernel packs, and its input's merged
(`qcore.kernels.fused_scales`); the layer's ``logical_widths`` say how wide each part is.

An activation is quantized as ``q = round(x / scale) + azp``, so that ``x = (q - azp) * scale``.
Kernels may add ``azp_adj`` (int32 [N], the sum of each weight row) when they pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.layers.base import MMLinearLayerConfig, check_bool, check_dtype, check_shape, dtype_name
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = ["Int8ScaledMMLinearLayerConfig"]


@dataclass(frozen=True)
class Int8ScaledMMLinearLayerConfig(MMLinearLayerConfig):
    """A layer with int8 weights and int8 activations.

    Attributes:
        is_static_input_scheme: the input's scale is in the checkpoint; else it is per token, made
            at run time.
        is_channelwise: one weight scale for each output channel; else one for the tensor.
        input_symmetric: activations have no zero point.
        is_fused_module: several checkpoint layers joined along N, each with its own tensor scale.
        weight_shape: (N, K); None if not known, and then a kernel with limits on it refuses.
        input_dtype: dtype of the input; None if not known.
        out_dtype: dtype of the output; None for that of the input.
    """

    kernel_type: ClassVar[str] = "int8"

    is_static_input_scheme: bool
    is_channelwise: bool
    input_symmetric: bool
    is_fused_module: bool = False
    weight_shape: tuple[int, int] | None = None
    input_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_bool(
            self, "is_static_input_scheme", "is_channelwise", "input_symmetric", "is_fused_module"
        )
        if self.weight_shape is not None:
            check_shape(self, "weight_shape", self.weight_shape, meaning="(N, K)")
        check_dtype(self, "input_dtype", self.input_dtype, optional=True)
        check_dtype(self, "out_dtype", self.out_dtype, optional=True)

    @property
    def in_features(self) -> int | None:
        """K."""
        return self.weight_shape[1] if self.weight_shape else None

    @property
    def out_features(self) -> int | None:
        """N."""
        return self.weight_shape[0] if self.weight_shape else None

    @property
    def activation_dtype(self) -> torch.dtype | None:
        """``input_dtype``."""
        return self.input_dtype

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        N, K = self.weight_shape or (None, None)
        if self.is_channelwise:
            scales: tuple[tuple[int | None, ...], ...] = ((N, 1), (N,))
        else:
            scales = ((None,),) if self.is_fused_module else ((1,), ())
        static = self.is_static_input_scheme
        inputs: tuple[tuple[int | None, ...], ...] = ((), (1,))
        if self.is_fused_module:
            inputs = ((), (None,))
        return {
            "weight": ParamSpec(
                ((N, K),), (torch.int8,), attrs={"input_dim": 1, "output_dim": 0}, about="weights"
            ),
            "weight_scale": ParamSpec(
                scales, FLOAT_DTYPES, attrs={"output_dim": 0}, about="weight scales"
            ),
            "input_scale": ParamSpec(
                inputs, (torch.float32,), optional=not static, about="the input's scale"
            ),
            "input_zero_point": ParamSpec(
                inputs,
                (torch.int32,),
                optional=not static or self.input_symmetric,
                about="the input's zero point",
            ),
        }

    def describe(self) -> str:
        """``int8 channel weights, int8 dynamic token activations``."""
        weights = "channel" if self.is_channelwise else "tensor"
        inputs = "static tensor" if self.is_static_input_scheme else "dynamic token"
        azp = "" if self.input_symmetric else " asymmetric"
        return (
            f"int8 {weights} weights, int8 {inputs}{azp} activations "
            f"({dtype_name(self.input_dtype)} in)"
        )
