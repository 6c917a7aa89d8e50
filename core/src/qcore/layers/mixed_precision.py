"""Mixed precision ("mp"): integer weights of 2 to 8 bits, activations in 16 or 32 bits.

Canonical layout (that of compressed-tensors' pack-quantized), K inputs, N outputs,
``pack = 32 // bits`` codes in an int32, lowest bits first, the last word filled up with zeros:

==================  ==================================  =========================================
weight_packed       int32 [N, ceil(K / pack)]           codes packed along K
weight_scale        float [N, G]                        G = ceil(K / group_size), 1 for -1
weight_zero_point   int32 [ceil(N / pack), G]           packed along N; only if ``zero_points``
weight_g_idx        int32 [K]                           group of each input; only if ``has_g_idx``
==================  ==================================  =========================================

``w[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]`` with ``g = g_idx[k]`` or ``k // group_size``;
where there are no zero points, zero is the weight type's bias (8 for uint4b8). Signed weight types
(int4, int8) are not packed: ``weight_packed`` is int8 [N, K].

Activations of e4m3 or int8 (W4A8) are made by the kernel, from an input of ``out_type``: a
symmetric scale for each token, computed at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.facts.scalar_type import ScalarType, scalar_types
from qcore.layers.base import MMLinearLayerConfig, check_bool, check_dtype, check_shape, dtype_name
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = ["MP_WEIGHT_TYPES", "MPLinearLayerConfig"]

_UNSIGNED = tuple(ScalarType.uint(bits) for bits in (2, 3, 4, 5, 6, 7, 8))
_BIASED = tuple(ScalarType.uint(bits, 1 << (bits - 1)) for bits in (2, 3, 4, 5, 6, 7, 8))
_SIGNED = (scalar_types.int4, scalar_types.int8)
_QUANTIZED = (torch.float8_e4m3fn, torch.int8)

MP_WEIGHT_TYPES: tuple[ScalarType, ...] = (*_UNSIGNED, *_BIASED, *_SIGNED)
"""Weight types that an `MPLinearLayerConfig` may have."""


@dataclass(frozen=True)
class MPLinearLayerConfig(MMLinearLayerConfig):
    """A layer with packed integer weights.

    Attributes:
        full_weight_shape: (K, N) of the whole layer.
        partition_weight_shape: (K, N) of this rank's part; the same without tensor parallelism.
        weight_type: of the codes: ``uintB`` with zero points, ``uintBbX`` or ``intB`` without.
        act_type: dtype of the activations that enter the product.
        group_size: inputs that share a scale; -1 for one group of all K.
        zero_points: whether there are zero points.
        has_g_idx: whether inputs are assigned to groups by a table (activation order).
        out_type: dtype of the output; None for ``act_type``.
    """

    kernel_type: ClassVar[str] = "mp"

    full_weight_shape: tuple[int, int]
    partition_weight_shape: tuple[int, int]
    weight_type: ScalarType
    act_type: torch.dtype
    group_size: int
    zero_points: bool
    has_g_idx: bool = False
    out_type: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_shape(self, "full_weight_shape", self.full_weight_shape, meaning="(K, N)")
        check_shape(self, "partition_weight_shape", self.partition_weight_shape, meaning="(K, N)")
        for axis, part, full in zip(
            "KN", self.partition_weight_shape, self.full_weight_shape, strict=True
        ):
            if part > full:
                raise ConfigError(
                    f"MPLinearLayerConfig.partition_weight_shape has {axis}={part}, "
                    f"more than the whole layer's {full}"
                )
        if self.weight_type not in MP_WEIGHT_TYPES:
            raise ConfigError(
                f"MPLinearLayerConfig.weight_type is {self.weight_type}; "
                f"allowed: {', '.join(map(str, MP_WEIGHT_TYPES))}"
            )
        check_dtype(self, "act_type", self.act_type, (*FLOAT_DTYPES, *_QUANTIZED))
        check_dtype(self, "out_type", self.out_type, optional=True)
        check_bool(self, "zero_points", "has_g_idx")
        if self.group_size != -1 and not self.group_size >= 1:
            raise ConfigError(
                f"MPLinearLayerConfig.group_size is {self.group_size}; "
                "it must be -1 (one group) or at least 1"
            )
        if self.zero_points and self.weight_type not in _UNSIGNED:
            raise ConfigError(
                f"MPLinearLayerConfig.zero_points is True with weight_type {self.weight_type}; "
                "zero points go with the types without bias: uint2 ... uint8"
            )

    @property
    def in_features(self) -> int:
        """K of this rank's part."""
        return self.partition_weight_shape[0]

    @property
    def out_features(self) -> int:
        """N of this rank's part."""
        return self.partition_weight_shape[1]

    @property
    def activation_dtype(self) -> torch.dtype:
        """``act_type``."""
        return self.act_type

    @property
    def pack_factor(self) -> int:
        """Codes in an int32."""
        return 32 // self.weight_type.size_bits

    @property
    def num_groups(self) -> int:
        """G, the scales of one output channel."""
        size = self.in_features if self.group_size == -1 else self.group_size
        return -(-self.in_features // size)

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        K, N, G, pack = self.in_features, self.out_features, self.num_groups, self.pack_factor
        rows = {"input_dim": 1, "output_dim": 0}
        # A rank's part with activation order may refer to any group of the whole layer.
        groups: tuple[int, ...] = (G,)
        if self.has_g_idx and self.partition_weight_shape[0] != self.full_weight_shape[0]:
            full_K = self.full_weight_shape[0]
            groups = (G, 1 if self.group_size == -1 else -(-full_K // self.group_size))
        if self.weight_type.signed:
            weight = ParamSpec(((N, K),), (torch.int8,), attrs=rows, about="signed codes")
        else:
            packed = {**rows, "packed_dim": 1, "packed_factor": pack}
            weight = ParamSpec(
                ((N, -(-K // pack)),), (torch.int32,), attrs=packed, about="codes packed along K"
            )
        return {
            "weight_packed": weight,
            "weight_scale": ParamSpec(
                tuple((N, g) for g in groups), FLOAT_DTYPES, attrs=rows, about="scales"
            ),
            "weight_zero_point": ParamSpec(
                tuple((-(-N // pack), g) for g in groups),
                (torch.int32,),
                optional=not self.zero_points,
                attrs={**rows, "packed_dim": 0, "packed_factor": pack},
                about="zero points packed along N",
            ),
            "weight_g_idx": ParamSpec(
                ((K,),), (torch.int32,), optional=not self.has_g_idx, about="group of each input"
            ),
        }

    def describe(self) -> str:
        """``uint4b8 g128, bfloat16 activations``."""
        group = "channel" if self.group_size == -1 else f"g{self.group_size}"
        words = [f"{self.weight_type} {group}"]
        if self.zero_points:
            words.append("zero points")
        if self.has_g_idx:
            words.append("g_idx")
        words.append(f"{dtype_name(self.act_type)} activations")
        return ", ".join(words)
