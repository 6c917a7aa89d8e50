"""`AiterInt8ScaledMMLinearKernel`: int8 weights and activations by AITER's ``gemm_a8w8_CK``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import Int8ScaledMMLinearKernel
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import dynamic_int8_quant, static_int8_quant

from qcore_rocm import aiter_ops, aiter_package
from qcore_rocm.kernels.aiter_limits import alignment, output_refusal

__all__ = ["AiterInt8ScaledMMLinearKernel"]


class AiterInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """Symmetric; static with one weight scale, or dynamic with a weight scale for each output."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the package has the function, on this machine."""
        return aiter_package.supported("gemm_a8w8_CK")

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """Symmetric, N and K multiples of 16, 16-bit outputs, scales of one kind."""
        by_channel = config.is_channelwise or config.is_fused_module
        static = config.is_static_input_scheme
        return answer(
            not config.input_symmetric and "activations with zero points are not implemented",
            alignment(config.weight_shape),
            output_refusal(config.out_dtype or config.input_dtype),
            static and by_channel and "one activation scale with a weight scale for each output",
            not static and not by_channel and "activation scales by token with one weight scale",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight as it is, scales in float32."""
        scale = tensors["weight_scale"].to(torch.float32)
        scale = scale.reshape(1) if scale.numel() == 1 and self._static else scale.reshape(-1, 1)
        weight = tensors["weight"].contiguous()
        return {**tensors, "weight": weight, "weight_scale": scale.contiguous()}

    @property
    def _static(self) -> bool:
        return self.config.is_static_input_scheme

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, then AITER's product."""
        weight, weight_scale, input_scale, _, _ = self._get_layer_params(layer)
        out_dtype = self.config.out_dtype or x.dtype
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if self._static:
            codes, scale = static_int8_quant(rows, input_scale), input_scale.reshape(1)
        else:
            codes, scale, _ = dynamic_int8_quant(rows)
        if bias is not None:
            bias = bias.to(out_dtype)
        out: torch.Tensor = aiter_ops.gemm_a8w8(
            codes, weight, scale, weight_scale, bias, torch.int8, out_dtype
        )
        return out.reshape(*x.shape[:-1], weight.shape[0])
