"""The reference kernel of experts: one expert's weights dequantized at a time, in float32."""

from __future__ import annotations

import torch

from qcore.kernels.base import Answer
from qcore.kernels.moe import GroupedMoeWNA16Kernel
from qcore.layers.moe import MoeWNA16LayerConfig
from qcore.numerics.dequantize import dequantize_expert

__all__ = ["ReferenceMoeWNA16Kernel"]


class ReferenceMoeWNA16Kernel(GroupedMoeWNA16Kernel):
    """Packed integer weights of 2 to 8 bits, any group size, zero points, ``g_idx``."""

    @classmethod
    def can_implement(cls, config: MoeWNA16LayerConfig) -> Answer:
        """Every config."""
        return True, None

    def project(
        self, layer: torch.nn.Module, projection: str, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        """Dequantize the matrix and multiply."""
        tensors = {name: getattr(layer, name, None) for name in self.config.params()}
        weight = dequantize_expert(self.config, tensors, projection, expert)
        return rows.to(torch.float32) @ weight.t()
