"""`FlashInferFP8ScaledMMLinearKernel`: FP8 with one scale for each side, by ``bmm_fp8``.

``mm_fp8`` takes unprepared weights from FlashInfer 0.7 on; ``bmm_fp8`` of a batch of one is the
same product in every release.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_flashinfer import library, ops
from qcore_flashinfer.kernels.support import FlashInferSupport
from qcore_flashinfer.layouts import pad_to, round_up

__all__ = ["FlashInferFP8ScaledMMLinearKernel"]

_ALIGNMENT = 16  # of K and N, by cuBLAS


class FlashInferFP8ScaledMMLinearKernel(FlashInferSupport, FP8ScaledMMLinearKernel):
    """Static or dynamic activations, one scale a tensor; CUTLASS's product, or cuBLAS's."""

    accumulation = FP8_SUM_UNIT
    function = "bmm_fp8"
    backend = "cublas"
    parameters = ("A", "B", "A_scale", "B_scale", "dtype", "backend")
    min_capability = 89

    @classmethod
    def device_refusal(cls, capability: int | None) -> str | None:
        """Why none of the backends is for such a GPU."""
        return library.backend_refusal(cls.function, ops.fp8_backend(capability), capability)

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """e4m3fn with one scale for each side, results of 16 bits."""
        key = config.activation_quant_key
        dtypes = {config.weight_quant_key.dtype} | ({key.dtype} if key is not None else set())
        weights = config.weight_quant_key.scale.group_shape
        return answer(
            key is None and "weight-only layers (activations as they are) are not implemented",
            dtypes != {torch.float8_e4m3fn} and "only float8_e4m3fn is implemented",
            not weights.is_per_tensor() and f"weight scales per {weights}; one for the tensor only",
            key is not None
            and not key.scale.static
            and not key.scale.group_shape.is_per_tensor()
            and f"activation scales per {key.scale.group_shape}; one for the tensor only",
            config.out_dtype not in (torch.float16, torch.bfloat16)
            and "results are float16 or bfloat16, float32 was asked for",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N', K'], padded to 16 both ways, and the scale as float32 [1]."""
        rows = tensors["weight"].t().view(torch.uint8)
        N, K = rows.shape
        rows = pad_to(pad_to(rows, 1, round_up(K, _ALIGNMENT)), 0, round_up(N, _ALIGNMENT))
        scale = tensors["weight_scale"].to(torch.float32).reshape(1)
        return {**tensors, "weight": rows.contiguous(), "weight_scale": scale}

    def apply_scaled_mm(
        self,
        *,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor | None,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
        output_shape: list[int],
    ) -> torch.Tensor:
        """See the base class; ``B`` is as packed, its padding is cut off the result."""
        assert As is not None  # `can_implement` refuses weight-only layers
        codes = A.view(torch.uint8)
        missing = B.shape[1] - codes.shape[1]
        if missing:
            codes = torch.nn.functional.pad(codes, (0, missing))
        scale = As.to(torch.float32).reshape(1)
        out: torch.Tensor = ops.fp8_mm(codes.contiguous(), B, scale, Bs, out_dtype)
        out = out[:, : output_shape[-1]]
        if bias is not None:
            out = out + bias.to(out_dtype)
        return out.reshape(output_shape)
