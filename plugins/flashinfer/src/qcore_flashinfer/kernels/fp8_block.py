"""`FlashInferFp8BlockScaledMMKernel`: FP8 in blocks of 128 x 128 on SM90.

``fp8_blockscale_gemm_sm90`` comes from TensorRT-LLM: for fewer than 32 rows it exchanges A and B,
so that the weight's outputs fill the tiles; from there on it runs a DeepGEMM of its own. It takes
activations as bfloat16 and rounds them to e4m3 in groups of 128 by ``x * (448 / amax)``. Its
``out_dtype=float16`` is not used: the runner writes bfloat16 whatever it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_flashinfer import ops
from qcore_flashinfer.kernels.support import FlashInferSupport

__all__ = ["FlashInferFp8BlockScaledMMKernel", "block_refusal", "packed_blocks"]

_ARCH = 90


def block_refusal(config: Fp8BlockScaledMMLinearLayerConfig) -> str | None:
    """Why a layer is not one of blocks of 128 x 128 and groups of 128."""
    key = config.activation_quant_key
    dtypes = {config.weight_quant_key.dtype} | ({key.dtype} if key is not None else set())
    rows, columns = config.weight_block
    N, K = config.weight_shape
    reasons = [
        key is None and "weight-only layers (activations as they are) are not implemented",
        dtypes != {torch.float8_e4m3fn} and "only float8_e4m3fn is implemented",
        (rows, columns) != (128, 128)
        and f"weight blocks of {rows}x{columns}; 128x128 is implemented",
        key is not None and key.scale.static and "static activation scales",
        key is not None
        and not key.scale.static
        and key.scale.group_shape.col != 128
        and f"activations in groups of {key.scale.group_shape.col}; 128 is implemented",
        N % 64 != 0 and f"N={N}; multiples of 64 only",
        K % 128 != 0 and f"K={K}; multiples of 128 only",
    ]
    return "; ".join(str(reason) for reason in reasons if reason) or None


class FlashInferFp8BlockScaledMMKernel(FlashInferSupport, Fp8BlockScaledMMLinearKernel):
    """bfloat16 in and out; any number of rows."""

    apply_input_quant = False
    accumulation = FP8_SUM_UNIT
    function = "fp8_blockscale_gemm_sm90"
    backend = "sm90"
    parameters = ("input", "weight", "weight_scale", "out_dtype")
    min_capability = _ARCH

    @classmethod
    def device_refusal(cls, capability: int | None) -> str | None:
        """Why it is not for such a GPU: the function's name has the only one that it takes."""
        if capability == _ARCH:
            return None
        return f"{cls.function} is for compute capability {_ARCH} alone, this is {capability}"

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Blocks of 128 x 128, groups of 128, N % 64, K % 128, inputs in bfloat16."""
        given = config.input_dtype
        return answer(
            block_refusal(config),
            given != torch.bfloat16
            and f"inputs in {str(given).removeprefix('torch.')}; FlashInfer takes bfloat16",
            config.out_dtype != torch.bfloat16
            and f"results in {str(config.out_dtype).removeprefix('torch.')}; they are bfloat16",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The bytes as they are, and scales in float32."""
        return packed_blocks(tensors)

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """The product; A is rounded inside."""
        out: torch.Tensor = ops.fp8_block_mm(A.contiguous(), B.view(torch.uint8), Bs)
        return out


def packed_blocks(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The bytes as they are, and scales in float32: what DeepGEMM reads as well."""
    scale = tensors["weight_scale_inv"].to(torch.float32).contiguous()
    weight = tensors["weight"].contiguous().view(torch.uint8)
    return {"weight": weight, "weight_scale_inv": scale}
