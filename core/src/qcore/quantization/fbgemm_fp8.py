"""The method ``fbgemm_fp8``: e4m3 weights per channel, dynamic activations with a bounded scale.

``activation_scale_ub`` is the largest magnitude that a token's scale covers; what is larger
saturates. It is the canonical ``input_scale_ub``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.facts.quant_key import GroupShape, kFp8DynamicTokenSym
from qcore.quantization.base import QuantizationConfig
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.layer_lists import LayerList, is_listed

__all__ = ["FBGEMMFp8Config"]

_DEFAULT_BOUND = 1200.0


class FBGEMMFp8Config(QuantizationConfig):
    """The ``quantization_config`` of ``quant_method: fbgemm_fp8``.

    Args:
        input_scale_ub: largest magnitude that a token's scale covers.
        modules_to_not_convert: parts of the names of layers that are not quantized.
    """

    def __init__(self, input_scale_ub: float, modules_to_not_convert: Sequence[str] = ()) -> None:
        self.modules_to_not_convert = LayerList(modules_to_not_convert)
        self.scheme = Float8Scheme(
            "fbgemm_fp8",
            GroupShape.PER_CHANNEL,
            kFp8DynamicTokenSym,
            input_scale_ub=input_scale_ub,
        )

    @classmethod
    def get_name(cls) -> str:
        """fbgemm_fp8."""
        return "fbgemm_fp8"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FBGEMMFp8Config:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (fbgemm_fp8)")
        bound = config.get("activation_scale_ub")
        if bound is None:
            bound = _DEFAULT_BOUND
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not bound > 0:
            raise fields.wrong("activation_scale_ub", "a positive number")
        if not math.isfinite(bound):
            raise fields.wrong("activation_scale_ub", "finite")
        return cls(float(bound), fields.strings("modules_to_not_convert"))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Float8Scheme | None:
        """Every linear layer but the listed ones."""
        if not isinstance(layer, torch.nn.Linear):
            return None
        return None if is_listed(prefix, self.modules_to_not_convert) else self.scheme

    def describe(self) -> str:
        """``fbgemm_fp8 channel weights, dynamic token activations up to 1200``."""
        return self.scheme.describe()
