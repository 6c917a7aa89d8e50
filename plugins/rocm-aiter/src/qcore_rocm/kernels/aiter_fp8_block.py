"""`AiterFp8BlockScaledMMKernel`: block FP8 by AITER's ``gemm_a8w8_blockscale``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import group_fp8_quant

from qcore_rocm import aiter_ops, aiter_package
from qcore_rocm.kernels.aiter_limits import alignment, output_refusal
from qcore_rocm.kernels.fp8_kind import device_dtype, dtype_refusal, for_device

__all__ = ["AiterFp8BlockScaledMMKernel"]


class AiterFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Blocks of 128 x 128, activations in groups of 128."""

    apply_input_quant = False

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the package has the function, on this machine."""
        return aiter_package.supported("gemm_a8w8_blockscale")

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Blocks of 128 x 128, dynamic groups of 128, 16-bit outputs; N % 16 and K % 128."""
        key = config.activation_quant_key
        rows, columns = config.weight_block
        return answer(
            dtype_refusal(config),
            (rows, columns) != (128, 128)
            and f"weight blocks of {rows}x{columns}; 128x128 is implemented",
            key is not None and key.scale.static and "static activation scales",
            key is not None
            and not key.scale.static
            and key.scale.group_shape.col != 128
            and f"activations in groups of {key.scale.group_shape.col}; 128 is implemented",
            alignment(config.weight_shape, 128),
            output_refusal(config.out_dtype),
        )

    def __init__(self, config: Fp8BlockScaledMMLinearLayerConfig) -> None:
        super().__init__(config)
        self.dtype = device_dtype()

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The device's e4m3, and float32 scales."""
        weight, factor = for_device(tensors["weight"].contiguous())
        scale = tensors["weight_scale_inv"].to(torch.float32) * factor
        return {"weight": weight.view(torch.uint8), "weight_scale_inv": scale.contiguous()}

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply."""
        codes, scale = group_fp8_quant(A.contiguous(), 128, self.dtype)
        out: torch.Tensor = aiter_ops.gemm_a8w8_blockscale(
            codes.view(torch.uint8),
            B.view(torch.uint8),
            scale.contiguous(),
            Bs,
            self.dtype,
            self.config.out_dtype,
        )
        return out
