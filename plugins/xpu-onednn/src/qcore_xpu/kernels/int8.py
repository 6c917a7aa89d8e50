"""`XPUInt8ScaledMMLinearKernel`: int8 weights and activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer
from qcore.kernels.scaled_mm import Int8ScaledMMLinearKernel
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import dynamic_int8_quant, static_int8_quant

from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUInt8ScaledMMLinearKernel"]


class XPUInt8ScaledMMLinearKernel(XpuSupport, Int8ScaledMMLinearKernel):
    """Static or dynamic, symmetric or not: ``int8_gemm``."""

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """Every int8 layer."""
        return True, None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight as it is; its scales in float32, one or [N]."""
        packed = dict(tensors)
        packed["weight"] = tensors["weight"].contiguous()
        packed["weight_scale"] = tensors["weight_scale"].to(torch.float32).reshape(-1)
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x``, then multiply."""
        weight, weight_scale, scale, azp, _ = self._get_layer_params(layer)
        rows = x.reshape(-1, x.shape[-1])
        if self.config.is_static_input_scheme:
            azp = None if self.config.input_symmetric or azp is None else azp.reshape(1)
            codes, scale = static_int8_quant(rows, scale, azp), scale.reshape(1)
        else:
            codes, scale, azp = dynamic_int8_quant(rows, self.config.input_symmetric)
        out = torch.ops.qcore_xpu.int8_gemm.default(
            codes, weight.t(), scale, azp, weight_scale, self.config.out_dtype or x.dtype, bias
        )
        return out.reshape(*x.shape[:-1], out.shape[-1])  # type: ignore[no-any-return]
