"""`FlashInferCutlassMxfp8LinearKernel`: MXFP8 weights and activations, by ``mm_mxfp8``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.block_formats import Mxfp8LinearKernel
from qcore.layers.microscaling import Mxfp8LinearLayerConfig

from qcore_flashinfer import ops
from qcore_flashinfer.kernels.block_format import FlashInferBlockFormat, weight_of

__all__ = ["FlashInferCutlassMxfp8LinearKernel"]

_BLOCK = 32


class FlashInferCutlassMxfp8LinearKernel(
    FlashInferBlockFormat[Mxfp8LinearLayerConfig], Mxfp8LinearKernel
):
    """Blocks of 32 with powers of two as scales, by CUTLASS."""

    kind = "mxfp8"
    n_multiple, k_multiple = 32, 32
    least = 128  # below it FlashInfer warns of NaN
    function = "mm_mxfp8"
    backend = "cutlass"
    parameters = ("out_dtype", "use_8x4_sf_layout", "backend")

    @classmethod
    def rounding_refusal(cls, config: Mxfp8LinearLayerConfig) -> str | None:
        """Activations in MXFP8 as well."""
        key = config.activation_quant_key
        if key is None:
            return "weight-only layers (activations as they are) are not implemented"
        mx = key.dtype == torch.float8_e4m3fn and key.scale.dtype == torch.uint8
        if not mx or key.scale.group_shape.col != _BLOCK:
            return f"activations as {key}; MXFP8 only"
        return None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Padded bytes, and scales in tiles."""
        return {
            "weight": self.packed_rows(tensors["weight"].view(torch.uint8), 1),
            "weight_scale": self.packed_scale(tensors["weight_scale"], _BLOCK),
        }

    def multiply(
        self,
        layer: torch.nn.Module,
        codes: torch.Tensor,
        scale: torch.Tensor,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        """``mm_mxfp8``."""
        weight, weight_scale = weight_of(layer)
        out: torch.Tensor = ops.mxfp8_mm(
            codes, weight, scale, weight_scale, out_dtype, self.backend
        )
        return out
