"""The block formats of GGUF files ("gguf"): Q4_0 to IQ4_XS.

Canonical layout, K inputs, N outputs: weight uint8 [N, K / block_size * type_size]. Each row is a
row of the file: blocks of ``type_size`` bytes, one for ``block_size`` consecutive inputs. Inputs
and products are floats; the rounding of activations to Q8 that some engines add is no part of it.

A block holds half-precision factors and small integers; `qcore.numerics.gguf_blocks` gives the
place of every bit. The formats are those of ggml's ``block_q4_0`` and its like (ggml-common.h), as
GGUF files of quantization version 2 have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.layers.base import MMLinearLayerConfig, check_dtype, check_shape, dtype_name
from qcore.layers.params import ParamSpec

__all__ = ["GGUF_BLOCK_TYPES", "GGUFBlockType", "GGUFLinearLayerConfig"]


@dataclass(frozen=True)
class GGUFBlockType:
    """The size of a block type.

    Attributes:
        name: as ggml calls it, in capitals.
        number: in the header of a file.
        block_size: weights in a block.
        type_size: bytes in a block.
        halves: where a block has its half-precision factors.
    """

    name: str
    number: int
    block_size: int
    type_size: int
    halves: tuple[int, ...]

    def row_bytes(self, K: int) -> int:
        """Bytes of a row of ``K`` weights, a multiple of the block."""
        return K // self.block_size * self.type_size


GGUF_BLOCK_TYPES: dict[str, GGUFBlockType] = {
    kind.name: kind
    for kind in (
        GGUFBlockType("Q4_0", 2, 32, 18, (0,)),
        GGUFBlockType("Q4_1", 3, 32, 20, (0, 2)),
        GGUFBlockType("Q5_0", 6, 32, 22, (0,)),
        GGUFBlockType("Q5_1", 7, 32, 24, (0, 2)),
        GGUFBlockType("Q8_0", 8, 32, 34, (0,)),
        GGUFBlockType("Q2_K", 10, 256, 84, (80, 82)),
        GGUFBlockType("Q3_K", 11, 256, 110, (108,)),
        GGUFBlockType("Q4_K", 12, 256, 144, (0, 2)),
        GGUFBlockType("Q5_K", 13, 256, 176, (0, 2)),
        GGUFBlockType("Q6_K", 14, 256, 210, (208,)),
        GGUFBlockType("IQ4_NL", 20, 32, 18, (0,)),
        GGUFBlockType("IQ4_XS", 23, 256, 136, (0,)),
    )
}
"""The types that qcore computes with, by name."""


@dataclass(frozen=True)
class GGUFLinearLayerConfig(MMLinearLayerConfig):
    """A layer whose weight stays in the blocks of a GGUF file.

    Attributes:
        weight_shape: (N, K); K is a multiple of the type's block.
        qtype: a key of `GGUF_BLOCK_TYPES`.
        input_dtype: dtype of the input; None if not known.
        out_dtype: dtype of the output; None for that of the input.
    """

    kernel_type: ClassVar[str] = "gguf"

    weight_shape: tuple[int, int]
    qtype: str
    input_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_shape(self, "weight_shape", self.weight_shape, meaning="(N, K)")
        if self.qtype not in GGUF_BLOCK_TYPES:
            raise ConfigError(
                f"{type(self).__name__}.qtype is {self.qtype!r}; "
                f"allowed: {', '.join(GGUF_BLOCK_TYPES)}"
            )
        if self.weight_shape[1] % self.block_size:
            raise ConfigError(
                f"{type(self).__name__}.weight_shape has K={self.weight_shape[1]}; "
                f"it must be a multiple of the {self.qtype} block of {self.block_size}"
            )
        check_dtype(self, "input_dtype", self.input_dtype, optional=True)
        check_dtype(self, "out_dtype", self.out_dtype, optional=True)

    @property
    def block_type(self) -> GGUFBlockType:
        """What ``qtype`` names."""
        return GGUF_BLOCK_TYPES[self.qtype]

    @property
    def block_size(self) -> int:
        """Weights in a block."""
        return self.block_type.block_size

    @property
    def type_size(self) -> int:
        """Bytes in a block."""
        return self.block_type.type_size

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

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module."""
        N, K = self.weight_shape
        return {
            "weight": ParamSpec(
                ((N, self.block_type.row_bytes(K)),),
                (torch.uint8,),
                attrs={"input_dim": 1, "output_dim": 0},
                about=f"{self.qtype} blocks",
            )
        }

    def describe(self) -> str:
        """``gguf Q4_K weights, bfloat16 activations``."""
        return f"gguf {self.qtype} weights, {dtype_name(self.input_dtype)} activations"
