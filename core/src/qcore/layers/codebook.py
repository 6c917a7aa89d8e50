"""Codebook weights ("codebook"): codes of a few bits that look up a value, activations in floats.

For what the integer layout cannot hold: values that are not evenly spaced (bitsandbytes' NF4 and
FP4), and zero points that are no integers (HQQ, torchao's int4).

Canonical layout, K inputs, N outputs, ``pack = 32 // bits`` codes in an int32, lowest bits first,
the last word filled up with zeros:

==================  ============================  ===============================================
weight_packed       int32 [N, ceil(K / pack)]     codes packed along K
weight_codebook     float32 [2**bits]             the value of each code
weight_scale        float [N, G]                  G = ceil(K / group_size), 1 for -1
weight_offset       float [N, G]                  only if ``has_offset``
==================  ============================  ===============================================

``w[n, k] = codebook[code[n, k]] * scale[n, g] + offset[n, g]`` with ``g = k // group_size``. An
affine code with a float zero point is the codebook 0, 1, 2 ... with ``offset = -zero * scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.layers.base import MMLinearLayerConfig, check_bool, check_dtype, check_shape, dtype_name
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = ["CodebookLinearLayerConfig"]

_BITS = range(1, 9)


@dataclass(frozen=True)
class CodebookLinearLayerConfig(MMLinearLayerConfig):
    """A layer whose codes look up their values.

    Attributes:
        weight_shape: (N, K).
        bits: of a code, 1 to 8.
        group_size: inputs that share a scale; -1 for one group of all K.
        has_offset: whether each group has an offset.
        input_dtype: dtype of the input; None if not known.
        out_dtype: dtype of the output; None for that of the input.
    """

    kernel_type: ClassVar[str] = "codebook"

    weight_shape: tuple[int, int]
    bits: int
    group_size: int
    has_offset: bool = False
    input_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_shape(self, "weight_shape", self.weight_shape, meaning="(N, K)")
        if self.bits not in _BITS:
            raise ConfigError(
                f"CodebookLinearLayerConfig.bits is {self.bits}; it must be from 1 to 8"
            )
        if self.group_size != -1 and not self.group_size >= 1:
            raise ConfigError(
                f"CodebookLinearLayerConfig.group_size is {self.group_size}; "
                "it must be -1 (one group) or at least 1"
            )
        check_bool(self, "has_offset")
        check_dtype(self, "input_dtype", self.input_dtype, optional=True)
        check_dtype(self, "out_dtype", self.out_dtype, optional=True)

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight_shape[0]

    @property
    def activation_dtype(self) -> torch.dtype | None:
        """``input_dtype``."""
        return self.input_dtype

    @property
    def pack_factor(self) -> int:
        """Codes in an int32."""
        return 32 // self.bits

    @property
    def num_groups(self) -> int:
        """G, the scales of one output channel."""
        return 1 if self.group_size == -1 else -(-self.in_features // self.group_size)

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        K, N, G, pack = self.in_features, self.out_features, self.num_groups, self.pack_factor
        rows = {"input_dim": 1, "output_dim": 0}
        return {
            "weight_packed": ParamSpec(
                ((N, -(-K // pack)),),
                (torch.int32,),
                attrs={**rows, "packed_dim": 1, "packed_factor": pack},
                about="codes packed along K",
            ),
            "weight_codebook": ParamSpec(
                ((2**self.bits,),), (torch.float32,), about="the value of each code"
            ),
            "weight_scale": ParamSpec(((N, G),), FLOAT_DTYPES, attrs=rows, about="scales"),
            "weight_offset": ParamSpec(
                ((N, G),),
                FLOAT_DTYPES,
                optional=not self.has_offset,
                attrs=rows,
                about="what is added to each group",
            ),
        }

    def describe(self) -> str:
        """``4 bit codebook g64, offsets, bfloat16 activations``."""
        group = "channel" if self.group_size == -1 else f"g{self.group_size}"
        offsets = ", offsets" if self.has_offset else ""
        return (
            f"{self.bits} bit codebook {group}{offsets}, {dtype_name(self.input_dtype)} activations"
        )
