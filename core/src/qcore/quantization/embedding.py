"""`QuantizedEmbedding`: an embedding that stays in the blocks of a GGUF file."""

from __future__ import annotations

from typing import Any

import torch

from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.numerics.gguf_blocks import dequantize_blocks

__all__ = ["QuantizedEmbedding", "embedding_scale"]


class QuantizedEmbedding(torch.nn.Module):
    """Looks rows of blocks up, and dequantizes those alone.

    Args:
        weight: uint8 [V, row bytes].
        qtype: a key of `GGUF_BLOCK_TYPES`.
        dtype: of the result.
        scale: what the result is multiplied by (Gemma), in its dtype; None for nothing.

    Attributes:
        num_embeddings: V.
        embedding_dim: K.
    """

    weight: torch.Tensor
    embed_scale: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        qtype: str,
        dtype: torch.dtype,
        scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        kind = GGUF_BLOCK_TYPES[qtype]
        self.num_embeddings = weight.shape[0]
        self.embedding_dim = weight.shape[1] // kind.type_size * kind.block_size
        self.qtype = qtype
        self.dtype = dtype
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` [...] to [..., K]."""
        rows = torch.nn.functional.embedding(ids, self.weight)
        values = dequantize_blocks(rows, self.qtype).to(self.dtype)
        return values if self.embed_scale is None else values * self.embed_scale.to(self.dtype)

    def extra_repr(self) -> str:
        """``262144, 640, Q8_0``."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.qtype}"


def embedding_scale(module: torch.nn.Module) -> tuple[bool, torch.Tensor | None]:
    """Whether `QuantizedEmbedding` computes what ``module`` does, and with which scale."""
    found: Any = module
    if not isinstance(module, torch.nn.Embedding) or module.max_norm is not None:
        return False, None
    if type(module) is torch.nn.Embedding:
        return True, None
    scale = getattr(found, "embed_scale", None)
    scaled = type(module).__name__.endswith("TextScaledWordEmbedding")
    return (True, scale) if scaled and isinstance(scale, torch.Tensor) else (False, None)
