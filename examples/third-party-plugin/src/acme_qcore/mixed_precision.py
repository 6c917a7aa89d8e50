"""`DequantizedMPLinearKernel`: trade the memory that quantization saved for torch's fast product.

The weight is dequantized once, when the layer is loaded, and held as [N, K] in the dtype of the
activations. In 16 bits that rounds each weight once more, as kernels do that feed dequantized
weights to a 16-bit matrix unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels import MPLinearKernel, MPLinearLayerConfig, answer
from qcore.numerics.dequantize import dequantize_weight

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class DequantizedMPLinearKernel(MPLinearKernel):
    """Weights of 2 to 8 bits, with zero points, any group size and ``g_idx``; no FP8 activations.

    Packs ``weight_packed``, ``weight_scale`` and so on into ``weight_dense``, [N, K] in the dtype
    of the activations.
    """

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Refuses FP8 activations, and outputs in another dtype than the activations'."""
        return answer(
            config.act_type not in _DTYPES and f"activations in {config.act_type}",
            config.out_type not in (None, config.act_type)
            and f"output in {config.out_type} from activations in {config.act_type}",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """``weight_dense`` takes the place of all canonical tensors."""
        return {"weight_dense": dequantize_weight(self.config, tensors).to(self.config.act_type)}

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One product of torch's."""
        return torch.nn.functional.linear(x, layer.weight_dense, bias)
