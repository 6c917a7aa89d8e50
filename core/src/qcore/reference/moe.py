"""The reference kernels of experts: one expert's weights dequantized at a time, in float32."""

from __future__ import annotations

from typing import TypeVar

import torch

from qcore.kernels.base import Answer
from qcore.kernels.moe import GroupedExpertsKernel, MoeMxfp4Kernel, MoeWNA16Kernel
from qcore.layers.moe import ExpertsLayerConfig, MoeMxfp4LayerConfig, MoeWNA16LayerConfig
from qcore.numerics.dequantize import dequantize_expert

__all__ = ["ReferenceMoeMxfp4Kernel", "ReferenceMoeWNA16Kernel"]

ConfigT = TypeVar("ConfigT", bound=ExpertsLayerConfig)


class _ReferenceExperts(GroupedExpertsKernel[ConfigT]):
    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Every config."""
        return True, None

    def project(
        self, layer: torch.nn.Module, projection: str, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        """Dequantize the matrix and multiply."""
        tensors = {name: getattr(layer, name, None) for name in self.config.params()}
        weight = dequantize_expert(self.config, tensors, projection, expert)
        return rows.to(torch.float32) @ weight.t()


class ReferenceMoeWNA16Kernel(_ReferenceExperts[MoeWNA16LayerConfig], MoeWNA16Kernel):
    """Packed integer weights of 2 to 8 bits, any group size, zero points, ``g_idx``."""


class ReferenceMoeMxfp4Kernel(_ReferenceExperts[MoeMxfp4LayerConfig], MoeMxfp4Kernel):
    """MXFP4 weights."""
