"""`DeepGemmFp8BlockScaledMMKernel`: block FP8 by DeepGEMM's product, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.kernels.deep_gemm import deep_gemm_fault, fp8_gemm_nt
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import group_fp8_quant
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_cuda import library, ops
from qcore_cuda.kernels.cutlass_fp8 import fp8_refusal

__all__ = ["DeepGemmFp8BlockScaledMMKernel"]

_EPS = 1e-30  # of a group of zeros: any scale will do that is no denormal


class DeepGemmFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Blocks of 128 x 128 on SM90. (On SM100 DeepGEMM rounds scales to powers of two.)"""

    apply_input_quant = False
    accumulation = FP8_SUM_UNIT

    @classmethod
    def get_min_capability(cls) -> int:
        """Written for SM90's tensor cores."""
        return 90

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether this is SM90, and on this machine whether the package has the function."""
        if compute_capability is None:
            compute_capability = current_platform.target.compute_capability
        here = current_platform.target.is_current
        return answer(
            compute_capability is not None
            and compute_capability != 90
            and f"scales as they are need compute capability 90, this is {compute_capability}",
            here and deep_gemm_fault(),
        )

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Blocks of 128 x 128, dynamic groups of 128, bfloat16 outputs; N % 64 and K % 128."""
        key = config.activation_quant_key
        rows, columns = config.weight_block
        N, K = config.weight_shape
        return answer(
            fp8_refusal(config),
            (rows, columns) != (128, 128)
            and f"weight blocks of {rows}x{columns}; 128x128 is implemented",
            config.out_dtype == torch.float16 and "results are bfloat16, float16 was asked for",
            key is not None and key.scale.static and "static activation scales",
            key is not None
            and not key.scale.static
            and key.scale.group_shape.col != 128
            and f"activations in groups of {key.scale.group_shape.col}; 128 is implemented",
            N % 64 != 0 and f"N={N}; multiples of 64 only",
            K % 128 != 0 and f"K={K}; multiples of 128 only",
        )

    def __init__(self, config: Fp8BlockScaledMMLinearLayerConfig) -> None:
        super().__init__(config)
        self.compiled_ops = library.unusable_here() is None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The bytes as they are, and scales in float32."""
        scale = tensors["weight_scale_inv"].to(torch.float32).contiguous()
        weight = tensors["weight"].contiguous().view(torch.uint8)
        return {"weight": weight, "weight_scale_inv": scale}

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply."""
        if A.is_cuda and self.compiled_ops:
            codes, scale = ops.per_token_group_fp8_quant(A.contiguous(), 128, _EPS)
        else:
            codes, scale = group_fp8_quant(A.contiguous(), 128)
        out: torch.Tensor = fp8_gemm_nt(codes.view(torch.uint8), scale, B.view(torch.uint8), Bs)
        return out
