"""Experts of a mixture: packed integer weights ("moe_wna16"), MXFP4 weights ("moe_mxfp4").

An expert is a gated MLP, ``down(gated(gate(x), up(x)))``, of H inputs, H outputs and I in between.
Its matrices are two: ``w13`` is gate and, below it, up, ``w2`` is down. The canonical layout is
that of one linear layer of the same weights ("mp", "mxfp4"), stacked over the E experts:

==============  ===================================  ===========================================
w13_packed      int32 [E, 2I, ceil(H / pack)]        codes packed along the inputs
w13_scale       float [E, 2I, G13]                   G13 = ceil(H / group_size), 1 for -1
w13_zero_point  int32 [E, ceil(2I / pack), G13]      packed along the outputs; with
                                                     ``zero_points`` only
w13_g_idx       int32 [E, H]                         group of each input, of gate and up alike; with
                                                     ``has_g_idx`` only
w2_packed       int32 [E, H, ceil(I / pack)]         and so on, with G2 = ceil(I / group_size)
==============  ===================================  ===========================================

"moe_mxfp4" has ``w13_weight`` uint8 [E, 2I, H / 2], ``w13_scale`` uint8 [E, 2I, H / 32], and the
same of ``w2``. With ``has_bias`` there are ``w13_bias`` float [E, 2I] and ``w2_bias`` [E, H] too.

Routing is no part of the layer: it is given, for each token, the experts and their weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.facts.scalar_type import ScalarType
from qcore.layers.base import MMLinearLayerConfig, check_bool, check_dtype, dtype_name
from qcore.layers.microscaling import MxFp4LinearLayerConfig
from qcore.layers.mixed_precision import MP_WEIGHT_TYPES, MPLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = [
    "EXPERT_ACTIVATIONS",
    "PROJECTIONS",
    "ExpertsLayerConfig",
    "MoeMxfp4LayerConfig",
    "MoeWNA16LayerConfig",
]

EXPERT_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swigluoai")
"""How an expert joins gate and up: ``f(gate) * up``, where ``gelu_tanh`` is the approximation by
tanh; ``swigluoai``, of gpt-oss, is ``g * sigmoid(1.702 * g) * (u + 1)`` with ``g = min(gate, 7)``
and ``u`` the up bounded to -7 ... 7."""

PROJECTIONS = ("w13", "w2")
"""The two products of an expert: gate and up in one, and down."""

_WEIGHT_TYPES = tuple(kind for kind in MP_WEIGHT_TYPES if not kind.signed)


class ExpertsLayerConfig(MMLinearLayerConfig):
    """Base of the configs of experts; what one expert's matrix is, `projection` says.

    Attributes:
        num_experts: E.
        hidden_size: H.
        intermediate_size: I.
        act_type: dtype of the input and the output.
        activation: one of `EXPERT_ACTIVATIONS`.
        has_bias: whether the products of each expert have biases.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    act_type: torch.dtype
    activation: str
    has_bias: bool

    @abstractmethod
    def projection(self, name: str) -> MMLinearLayerConfig:
        """One expert's ``w13`` or ``w2`` as a linear layer."""

    @abstractmethod
    def weights(self) -> str:
        """The weights in a few words: ``uint4b8 g128``."""

    def __post_init__(self) -> None:
        for field in ("num_experts", "hidden_size", "intermediate_size"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise self._wrong(field, "it must be a positive integer")
        check_dtype(self, "act_type", self.act_type, FLOAT_DTYPES)
        check_bool(self, "has_bias")
        if self.activation not in EXPERT_ACTIVATIONS:
            raise self._wrong("activation", f"allowed: {', '.join(EXPERT_ACTIVATIONS)}")

    def _wrong(self, field: str, allowed: str) -> ConfigError:
        value = getattr(self, field)
        shown = str(value) if isinstance(value, ScalarType) else repr(value)
        return ConfigError(f"{type(self).__name__}.{field} is {shown}; {allowed}")

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

    def shape(self, name: str) -> tuple[int, int]:
        """(K, N) of one expert's ``w13`` or ``w2``."""
        H, I = self.hidden_size, self.intermediate_size  # noqa: E741
        return {"w13": (H, 2 * I), "w2": (I, H)}[name]

    @staticmethod
    def stacked_name(projection: str, name: str) -> str:
        """The layer's tensor for a linear layer's: ``w13``, ``weight_scale`` -> ``w13_scale``."""
        return f"{projection}_{name.removeprefix('weight_')}"

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        found = {
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
        if self.has_bias:
            for projection in PROJECTIONS:
                shape = (self.num_experts, self.shape(projection)[1])
                about = f"{projection}: biases"
                found[f"{projection}_bias"] = ParamSpec((shape,), FLOAT_DTYPES, about=about)
        return found

    def describe(self) -> str:
        """``8 experts of 14336, silu, uint4b8 g128, bfloat16 activations``."""
        words = [f"{self.num_experts} experts of {self.intermediate_size}", self.activation]
        words += [self.weights(), *(["bias"] if self.has_bias else [])]
        return ", ".join([*words, f"{dtype_name(self.act_type)} activations"])


@dataclass(frozen=True)
class MoeWNA16LayerConfig(ExpertsLayerConfig):
    """The experts of one mixture layer, with packed integer weights.

    Attributes:
        num_experts: E.
        hidden_size: H.
        intermediate_size: I.
        weight_type: of the codes: ``uintB`` with zero points, ``uintBbX`` without.
        act_type: dtype of the input and the output.
        group_size: inputs that share a scale; -1 for one group of all.
        zero_points: whether there are zero points.
        has_g_idx: whether inputs are assigned to groups by tables (activation order).
        activation: one of `EXPERT_ACTIVATIONS`.
        has_bias: whether the products of each expert have biases.
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
    has_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_type not in _WEIGHT_TYPES:
            raise self._wrong("weight_type", f"allowed: {', '.join(map(str, _WEIGHT_TYPES))}")
        check_bool(self, "zero_points", "has_g_idx")
        if self.group_size != -1 and not self.group_size >= 1:
            raise self._wrong("group_size", "it must be -1 (one group) or at least 1")
        if self.zero_points and self.weight_type.has_bias():
            raise ConfigError(
                f"MoeWNA16LayerConfig.zero_points is True with weight_type {self.weight_type}; "
                "zero points go with the types without bias: uint2 ... uint8"
            )

    def projection(self, name: str) -> MPLinearLayerConfig:
        """One expert's ``w13`` or ``w2`` as an "mp" layer."""
        K, N = self.shape(name)
        return MPLinearLayerConfig(
            full_weight_shape=(K, N),
            partition_weight_shape=(K, N),
            weight_type=self.weight_type,
            act_type=self.act_type,
            group_size=-1 if self.group_size >= K else self.group_size,
            zero_points=self.zero_points,
            has_g_idx=self.has_g_idx,
        )

    def weights(self) -> str:
        """``uint4b8 g128``; with zero points and ``g_idx``, if there are any."""
        group = "channel" if self.group_size == -1 else f"g{self.group_size}"
        words = [f"{self.weight_type} {group}"]
        words += ["zero points"] * self.zero_points + ["g_idx"] * self.has_g_idx
        return ", ".join(words)


@dataclass(frozen=True)
class MoeMxfp4LayerConfig(ExpertsLayerConfig):
    """The experts of one mixture layer, with MXFP4 weights; activations as they are.

    Attributes:
        num_experts: E.
        hidden_size: H, a multiple of 32.
        intermediate_size: I, a multiple of 32.
        act_type: dtype of the input and the output.
        activation: one of `EXPERT_ACTIVATIONS`.
        has_bias: whether the products of each expert have biases.
    """

    kernel_type: ClassVar[str] = "moe_mxfp4"

    num_experts: int
    hidden_size: int
    intermediate_size: int
    act_type: torch.dtype
    activation: str = "silu"
    has_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("hidden_size", "intermediate_size"):
            if getattr(self, field) % MxFp4LinearLayerConfig.block_size:
                raise self._wrong(field, "it must be a multiple of 32, the block of MXFP4")

    def projection(self, name: str) -> MxFp4LinearLayerConfig:
        """One expert's ``w13`` or ``w2`` as an "mxfp4" layer."""
        K, N = self.shape(name)
        return MxFp4LinearLayerConfig(weight_shape=(N, K), input_dtype=self.act_type)

    def weights(self) -> str:
        """``mxfp4``."""
        return "mxfp4"
