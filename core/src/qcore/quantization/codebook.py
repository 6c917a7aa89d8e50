"""What the formats with a codebook have in common: blocks of a flattened weight, to canonical.

bitsandbytes and HQQ cut the weight, flattened row by row, into blocks, so that one may begin in one
row and end in the next. The canonical layout has groups within a row; where K is no multiple of the
block, a group is the greatest common divisor of the two, and scales are repeated. Nothing is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.numerics.packing import pack_int32
from qcore.quantization.base import CanonicalLinear

__all__ = ["BlockCodes", "codes_from_bytes"]


@dataclass(frozen=True)
class BlockCodes:
    """Codes with a scale for each block of the flattened weight.

    Attributes:
        bits: of a code.
        block_size: weights that share a scale; -1 for those of a row.
        has_offset: whether each block has an offset.
    """

    bits: int
    block_size: int
    has_offset: bool = False

    def num_blocks(self, K: int, N: int) -> int:
        """How many scales there are; the last block may be a part of one."""
        return N if self.block_size == -1 else -(-K * N // self.block_size)

    def _group(self, K: int) -> int:
        return K if self.block_size == -1 else math.gcd(K, self.block_size)

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> CodebookLinearLayerConfig:
        """The layer."""
        group = self._group(K)
        return CodebookLinearLayerConfig(
            weight_shape=(N, K),
            bits=self.bits,
            group_size=-1 if group == K else group,
            has_offset=self.has_offset,
            input_dtype=act_dtype,
            out_dtype=act_dtype,
        )

    def canonical(
        self,
        K: int,
        N: int,
        act_dtype: torch.dtype,
        *,
        codes: torch.Tensor,
        codebook: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None = None,
    ) -> CanonicalLinear:
        """The layer.

        Args:
            K: inputs.
            N: outputs.
            act_dtype: of the layer's input and output.
            codes: uint8, the first N * K of them row by row.
            codebook: [2**bits].
            scale: float, one for each block.
            offset: float, one for each block, or None.
        """
        group = self._group(K)
        size = K if self.block_size == -1 else self.block_size
        first = torch.arange(0, N * K, group, device=scale.device)
        block = first // size

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.reshape(-1)[block].reshape(N, K // group).contiguous()

        rows = codes.reshape(-1)[: N * K].reshape(N, K)
        tensors = {
            "weight_packed": pack_int32(rows, self.bits, dim=1),
            "weight_codebook": codebook.to(torch.float32).contiguous(),
            "weight_scale": spread(scale),
        }
        if offset is not None:
            tensors["weight_offset"] = spread(offset)
        return CanonicalLinear(self.layer_config(K, N, act_dtype), tensors)


def codes_from_bytes(packed: torch.Tensor) -> torch.Tensor:
    """The 4-bit codes of bytes, the first one in the high half: uint8, flat."""
    flat = packed.reshape(-1)
    return torch.stack((flat >> 4, flat & 0xF), dim=-1).reshape(-1)
