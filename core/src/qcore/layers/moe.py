"""Experts of a mixture ("moe_wna16"): packed integer weights, activations in 16 or 32 bits.

An expert is a gated MLP, ``down(act(gate(x)) * up(x))``, of H inputs, H outputs and I in between.
The canonical layout is that of "mp" (`qcore.layers.mixed_precision`), stacked over the E experts;
``w13`` is gate and, below it, up, ``w2`` is down:

==============  ===================================  ===========================================
w13_packed      int32 [E, 2I, ceil(H / pack)]        codes packed along the inputs
w13_scale       float [E, 2I, G13]                   G13 = ceil(H / group_size), 1 for -1
w13_zero_point  int32 [E, ceil(2I / pack), G13]      packed along the outputs; with
                                                     ``zero_points`` only
w13_g_idx       int32 [E, H]                         group of each input, of gate and up alike; with
                                                     ``has_g_idx`` only
w2_packed       int32 [E, H, ceil(I / pack)]         and so on, with G2 = ceil(I / group_size)
==============  ===================================  ===========================================

Routing is no part of the layer: it is given, for each token, the experts and their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.facts.scalar_type import ScalarType
from qcore.layers.base import MMLinearLayerConfig, check_bool, check_dtype, dtype_name
from qcore.layers.mixed_precision import MP_WEIGHT_TYPES, MPLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = ["EXPERT_ACTIVATIONS", "PROJECTIONS", "MoeWNA16LayerConfig"]

EXPERT_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
"""Functions that an expert's gate may have; ``gelu_tanh`` is the approximation by tanh."""

PROJECTIONS = ("w13", "w2")
"""The two products of an expert: gate and up in one, and down."""

_WEIGHT_TYPES = tuple(kind for kind in MP_WEIGHT_TYPES if not kind.signed)
_STACKED = {"weight_packed": "packed", "weight_scale": "scale"}
_STACKED |= {"weight_zero_point": "zero_point", "weight_g_idx": "g_idx"}


@dataclass(frozen=True)
class MoeWNA16LayerConfig(MMLinearLayerConfig):
    """The experts of one mixture layer.

    Attributes:
        num_experts: E.
        hidden_size: H.
        intermediate_size: I.
        weight_type: of the codes: ``uintB`` with zero points, ``uintBbX`` without.
        act_type: dtype of the input and the output.
        group_size: inputs that share a scale; -1 for one group of all.
        zero_points: whether there are zero points.
        has_g_idx: whether inputs are assigned to groups by tables (activation order).
        activation: of the gate, one of `EXPERT_ACTIVATIONS`.
    """

    kernel_type: ClassVar[str] = "moe_wna16"

    num_experts: int
    hidden_size: int
    intermediate_size: int
    weight_type: ScalarType
    act_type: torch.dtype
    group_size: int
    zero_points: bool
    has_g_idx: bool = False
    activation: str = "silu"

    def __post_init__(self) -> None:
        for field in ("num_experts", "hidden_size", "intermediate_size"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise self._wrong(field, "it must be a positive integer")
        if self.weight_type not in _WEIGHT_TYPES:
            raise self._wrong("weight_type", f"allowed: {', '.join(map(str, _WEIGHT_TYPES))}")
        check_dtype(self, "act_type", self.act_type, FLOAT_DTYPES)
        check_bool(self, "zero_points", "has_g_idx")
        if self.group_size != -1 and not self.group_size >= 1:
            raise self._wrong("group_size", "it must be -1 (one group) or at least 1")
        if self.zero_points and self.weight_type.has_bias():
            raise ConfigError(
                f"MoeWNA16LayerConfig.zero_points is True with weight_type {self.weight_type}; "
                "zero points go with the types without bias: uint2 ... uint8"
            )
        if self.activation not in EXPERT_ACTIVATIONS:
            raise self._wrong("activation", f"allowed: {', '.join(EXPERT_ACTIVATIONS)}")

    def _wrong(self, field: str, allowed: str) -> ConfigError:
        value = getattr(self, field)
        shown = str(value) if isinstance(value, ScalarType) else repr(value)
        return ConfigError(f"MoeWNA16LayerConfig.{field} is {shown}; {allowed}")

    @property
    def in_features(self) -> int:
        """H."""
        return self.hidden_size

    @property
    def out_features(self) -> int:
        """H."""
        return self.hidden_size

    @property
    def activation_dtype(self) -> torch.dtype:
        """``act_type``."""
        return self.act_type

    def projection(self, name: str) -> MPLinearLayerConfig:
        """One expert's ``w13`` or ``w2`` as an "mp" layer."""
        H, I = self.hidden_size, self.intermediate_size  # noqa: E741
        K, N = {"w13": (H, 2 * I), "w2": (I, H)}[name]
        return MPLinearLayerConfig(
            full_weight_shape=(K, N),
            partition_weight_shape=(K, N),
            weight_type=self.weight_type,
            act_type=self.act_type,
            group_size=-1 if self.group_size >= K else self.group_size,
            zero_points=self.zero_points,
            has_g_idx=self.has_g_idx,
        )

    @staticmethod
    def stacked_name(projection: str, name: str) -> str:
        """The layer's tensor for an "mp" tensor: ``w13``, ``weight_scale`` -> ``w13_scale``."""
        return f"{projection}_{_STACKED[name]}"

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        return {
            self.stacked_name(projection, name): ParamSpec(
                tuple((self.num_experts, *shape) for shape in spec.shape),
                spec.dtypes,
                spec.optional,
                {k: v + 1 if k.endswith("_dim") else v for k, v in spec.attrs.items()},
                f"{projection}: {spec.about}",
            )
            for projection in PROJECTIONS
            for name, spec in self.projection(projection).params().items()
        }

    def describe(self) -> str:
        """``8 experts of 14336, silu, uint4b8 g128, bfloat16 activations``."""
        group = "channel" if self.group_size == -1 else f"g{self.group_size}"
        words = [f"{self.num_experts} experts of {self.intermediate_size}", self.activation]
        words.append(f"{self.weight_type} {group}")
        if self.zero_points:
            words.append("zero points")
        if self.has_g_idx:
            words.append("g_idx")
        words.append(f"{dtype_name(self.act_type)} activations")
        return ", ".join(words)
