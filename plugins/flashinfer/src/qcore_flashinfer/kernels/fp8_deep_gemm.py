"""`FlashInferFp8DeepGEMMDynamicBlockScaledKernel`: two products, by the number of rows.

Without the package ``deep_gemm``, `FlashInferFp8BlockScaledMMKernel` does any number of rows with
the DeepGEMM that FlashInfer brings along.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer
from qcore.kernels.block_scaled_mm import (
    Fp8BlockScaledDynamicMMLinearKernel,
    Fp8BlockScaledMMLinearKernel,
)
from qcore.kernels.deep_gemm import deep_gemm_fault, fp8_gemm_nt
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import group_fp8_quant
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_flashinfer.kernels.fp8_block import (
    FlashInferFp8BlockScaledMMKernel,
    block_refusal,
    packed_blocks,
)

__all__ = ["DeepGemmPart", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"]

_ARCH = 90
_NOT_INSTALLED = "deep_gemm is not installed (sgl-deep-gemm is a build of it)"


class DeepGemmPart(Fp8BlockScaledMMLinearKernel):
    """The composite's part for many rows. Not declared by itself."""

    apply_input_quant = False
    accumulation = FP8_SUM_UNIT

    @classmethod
    def get_min_capability(cls) -> int:
        """SM90."""
        return _ARCH

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether this is SM90, and on this machine whether the package has the function."""
        if compute_capability is None:
            compute_capability = current_platform.target.compute_capability
        return answer(
            compute_capability != _ARCH
            and f"scales as they are need compute capability {_ARCH}, this is {compute_capability}",
            current_platform.target.is_current and deep_gemm_fault(_NOT_INSTALLED),
        )

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Blocks of 128 x 128, groups of 128, N % 64, K % 128, results in bfloat16."""
        return answer(
            block_refusal(config),
            config.out_dtype != torch.bfloat16
            and f"results in {str(config.out_dtype).removeprefix('torch.')}; they are bfloat16",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The bytes as they are, and scales in float32."""
        return packed_blocks(tensors)

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply."""
        codes, scale = group_fp8_quant(A.contiguous(), 128)
        out: torch.Tensor = fp8_gemm_nt(codes.view(torch.uint8), scale, B.view(torch.uint8), Bs)
        return out


class FlashInferFp8DeepGEMMDynamicBlockScaledKernel(Fp8BlockScaledDynamicMMLinearKernel):
    """FlashInfer's product below 32 rows, DeepGEMM's from there on; one copy of the weight."""

    accumulation = FP8_SUM_UNIT
    base_type = FlashInferFp8BlockScaledMMKernel
    fallback_type = DeepGemmPart

    @classmethod
    def get_min_capability(cls) -> int:
        """SM90."""
        return _ARCH
