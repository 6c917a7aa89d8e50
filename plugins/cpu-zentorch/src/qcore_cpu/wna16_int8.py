"""Packed integer weights times activations in int8, on any CPU."""

from __future__ import annotations

import torch
from qcore.kernels.base import Answer, answer, tensors_of
from qcore.layers.mixed_precision import MPLinearLayerConfig

from qcore_cpu.wna16 import CPUWNA16LinearKernel

__all__ = ["CPUWNA8LinearKernel", "CPUWNA16Int8LinearKernel"]


class CPUWNA16Int8LinearKernel(CPUWNA16LinearKernel):
    """As `CPUWNA16LinearKernel`, with activations rounded to int8 before they are multiplied.

    Each group of a row (of at most 128 inputs) has a scale of its own, the largest magnitude by
    127. For gaussian activations that is an error of about 0.6 % of the result: what ONNX Runtime
    calls accuracy level 4, and llama.cpp does always. Sums within a group are integers and exact.
    """

    per_row = False
    """Whether a row has one scale, and not one for each group."""

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        return torch.ops.qcore_cpu.wna16_int8_linear.default(  # type: ignore[no-any-return]
            x,
            *tensors_of(layer, *self._held),
            bias,
            self.stored_bits,
            *self.shape,
            self.per_row,
            self.out_type,
        )


class CPUWNA8LinearKernel(CPUWNA16Int8LinearKernel):
    """Layers whose config asks for int8 activations (W4A8): a symmetric scale for each token."""

    per_row = True

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """Every config with int8 activations."""
        return answer(
            config.act_type != torch.int8
            and f"{str(config.act_type).removeprefix('torch.')} activations; int8 is meant for this"
        )
