"""FP8 ("fp8", "fp8_block"): e4m3 weights, with e4m3 activations or (weight only) 16-bit ones.

Canonical layout of "fp8", K inputs, N outputs:

==============  ===========================  ===================================================
weight          e4m3 [K, N]                  the transposed view of a contiguous [N, K]
weight_scale    float [] or [1]; [N, 1]      per tensor; per channel
input_scale     float32 [] or [1]            only if the activations are static
input_scale_ub  float32 [] or [1]            optional, with dynamic activations: the largest
                                             magnitude that a computed scale covers
==============  ===========================  ===================================================

and of "fp8_block", with weight blocks of bn x bk:

================  ===============================  ==========================================
weight            e4m3 [N, K]
weight_scale_inv  float [ceil(N/bn), ceil(K/bk)]   multiplies, in spite of its name
input_scale       float32 [] or [1]                only if the activations are static
================  ===============================  ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.facts.quant_key import QuantKey
from qcore.layers.base import MMLinearLayerConfig, check_dtype, check_shape, dtype_name
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = ["FP8ScaledMMLinearLayerConfig", "Fp8BlockScaledMMLinearLayerConfig"]

_E4M3 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@dataclass(frozen=True)
class FP8ScaledMMLinearLayerConfig(MMLinearLayerConfig):
    """A layer with e4m3 weights scaled per tensor or per channel.

    Attributes:
        weight_quant_key: how the weight is quantized.
        activation_quant_key: how the input is quantized; None for weight-only.
        weight_shape: (N, K).
        input_dtype: dtype of the input.
        out_dtype: dtype of the output.
    """

    kernel_type: ClassVar[str] = "fp8"

    weight_quant_key: QuantKey
    activation_quant_key: QuantKey | None
    weight_shape: tuple[int, int]
    input_dtype: torch.dtype
    out_dtype: torch.dtype

    def __post_init__(self) -> None:
        check_shape(self, "weight_shape", self.weight_shape, meaning="(N, K)")
        check_dtype(self, "input_dtype", self.input_dtype)
        check_dtype(self, "out_dtype", self.out_dtype)
        for field in ("weight_quant_key", "activation_quant_key"):
            key = getattr(self, field)
            if key is None and field == "activation_quant_key":
                continue
            if not isinstance(key, QuantKey) or key.dtype not in _E4M3:
                raise ConfigError(
                    f"{type(self).__name__}.{field} is {key}; it must be a QuantKey of e4m3 "
                    "(float8_e4m3fn or float8_e4m3fnuz)"
                )
        self._check_groups()

    def _check_groups(self) -> None:
        group = self.weight_quant_key.scale.group_shape
        if not (group.is_per_tensor() or group.is_per_channel() or group.is_per_token()):
            raise ConfigError(
                f"{type(self).__name__}.weight_quant_key has scales per {group}; this config is "
                "for tensor or channel scales (blocks: Fp8BlockScaledMMLinearLayerConfig)"
            )

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight_shape[0]

    @property
    def activation_dtype(self) -> torch.dtype:
        """``input_dtype``."""
        return self.input_dtype

    def _input_scale(self) -> ParamSpec:
        key = self.activation_quant_key
        return ParamSpec(
            ((), (1,)),
            (torch.float32,),
            optional=key is None or not key.scale.static,
            about="the input's scale",
        )

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's first table."""
        N, K = self.weight_shape
        tensor = self.weight_quant_key.scale.group_shape.is_per_tensor()
        assert isinstance(self.weight_quant_key.dtype, torch.dtype)
        return {
            "weight": ParamSpec(
                ((K, N),),
                (self.weight_quant_key.dtype,),
                attrs={"input_dim": 0, "output_dim": 1},
                about="weights, transposed view",
            ),
            "weight_scale": ParamSpec(
                ((), (1,)) if tensor else ((N, 1), (N,)),
                FLOAT_DTYPES,
                attrs={"output_dim": 0},
                about="weight scales",
            ),
            "input_scale": self._input_scale(),
            "input_scale_ub": ParamSpec(
                ((), (1,)), (torch.float32,), optional=True, about="bound of the input's scale"
            ),
        }

    def describe(self) -> str:
        """``fp8 channel weights, fp8 dynamic token activations``."""
        weights = self.weight_quant_key.scale.group_shape
        key = self.activation_quant_key
        inputs = (
            f"fp8 {key.scale} activations ({dtype_name(self.input_dtype)} in)"
            if key
            else f"{dtype_name(self.input_dtype)} activations"
        )
        return f"fp8 {weights} weights, {inputs}"


@dataclass(frozen=True)
class Fp8BlockScaledMMLinearLayerConfig(FP8ScaledMMLinearLayerConfig):
    """A layer with e4m3 weights scaled in blocks (DeepSeek's 128 x 128), fields as its parent's."""

    kernel_type: ClassVar[str] = "fp8_block"

    def _check_groups(self) -> None:
        group = self.weight_quant_key.scale.group_shape
        if not (group.row >= 1 and group.col >= 1):
            raise ConfigError(
                f"{type(self).__name__}.weight_quant_key has scales per {group}; "
                "this config is for blocks such as 128x128"
            )
        key = self.activation_quant_key
        if key and not key.scale.static and not key.scale.group_shape.is_per_group():
            raise ConfigError(
                f"{type(self).__name__}.activation_quant_key is {key}; "
                "dynamic activations of a block-scaled layer are scaled per group (1x128)"
            )

    @property
    def weight_block(self) -> tuple[int, int]:
        """(bn, bk)."""
        group = self.weight_quant_key.scale.group_shape
        return group.row, group.col

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's second table."""
        N, K = self.weight_shape
        bn, bk = self.weight_block
        assert isinstance(self.weight_quant_key.dtype, torch.dtype)
        rows = {"input_dim": 1, "output_dim": 0}
        return {
            "weight": ParamSpec(
                ((N, K),), (self.weight_quant_key.dtype,), attrs=rows, about="weights"
            ),
            "weight_scale_inv": ParamSpec(
                ((-(-N // bn), -(-K // bk)),), FLOAT_DTYPES, attrs=rows, about="block scales"
            ),
            "input_scale": self._input_scale(),
        }
