"""The "gguf" method: linear layers that stay in the blocks of a GGUF file.

Such a layer has one tensor, ``weight``, uint8 [N, row bytes]: the canonical layout already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.layers.gguf import GGUF_BLOCK_TYPES, GGUFBlockType, GGUFLinearLayerConfig
from qcore.layers.params import ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig

__all__ = ["GGUFConfig", "GGUFLinearScheme"]


@dataclass(frozen=True)
class GGUFLinearScheme(LinearScheme):
    """A layer in blocks of one type.

    Attributes:
        qtype: a key of `GGUF_BLOCK_TYPES`.
    """

    qtype: str

    @property
    def _kind(self) -> GGUFBlockType:
        return GGUF_BLOCK_TYPES[self.qtype]

    def describe(self) -> str:
        """``GGUF Q4_K``."""
        return f"GGUF {self.qtype}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """``weight``, as in the layer's config."""
        if K % self._kind.block_size:
            raise UnsupportedQuantizationError(
                f"{K} inputs are no multiple of the {self.qtype} block of {self._kind.block_size}"
            )
        return GGUFLinearLayerConfig((N, K), self.qtype).params()

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From the shape of ``weight``."""
        shape = shapes.get("weight", ())
        if len(shape) != 2 or shape[1] % self._kind.type_size:
            return None
        return shape[1] // self._kind.type_size * self._kind.block_size, shape[0]

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> GGUFLinearLayerConfig:
        """The layer."""
        return GGUFLinearLayerConfig((N, K), self.qtype, act_dtype, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """The tensor as it is."""
        return CanonicalLinear(self.layer_config(K, N, act_dtype), {"weight": tensors["weight"]})


class GGUFConfig(QuantizationConfig):
    """Which layer has which type.

    Args:
        types: layer name -> key of `GGUF_BLOCK_TYPES`.
    """

    names_layers: ClassVar[bool] = True

    def __init__(self, types: Mapping[str, str]) -> None:
        self.types = dict(types)

    @classmethod
    def get_name(cls) -> str:
        """``gguf``."""
        return "gguf"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GGUFConfig:
        """Read ``{"quant_method": "gguf", "types": {layer: type}}``; `open_gguf` makes such a one.

        Raises:
            CheckpointError: there is no such table.
        """
        types = config.get("types")
        known = list(GGUF_BLOCK_TYPES)
        if not isinstance(types, Mapping) or not all(t in known for t in types.values()):
            raise CheckpointError(
                "quantization_config: GGUF layers are described by their file; load that"
            )
        return cls(types)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """The layer's type, if the file has blocks for it."""
        qtype = self.types.get(prefix)
        return GGUFLinearScheme(qtype) if qtype is not None else None

    def describe(self) -> str:
        """``gguf: Q4_K, Q6_K``, the most frequent type first."""
        return "gguf: " + ", ".join(name for name, _ in Counter(self.types.values()).most_common())
