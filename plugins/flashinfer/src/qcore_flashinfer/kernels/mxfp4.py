"""`FlashInferMxFp4LinearKernel`: MXFP4 weights and activations, by ``mm_fp4`` in CuTe DSL.

From 0.7 on FlashInfer names SM120 and SM121 for this backend too, but its kernel for them takes
NVFP4 alone, so this class keeps to SM100's family.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.quant_key import QuantKey
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.block_formats import MxFp4LinearKernel
from qcore.layers.microscaling import MxFp4LinearLayerConfig

from qcore_flashinfer import ops
from qcore_flashinfer.kernels.block_format import FlashInferBlockFormat, weight_of

__all__ = ["FlashInferMxFp4LinearKernel"]

_BLOCK = 32


def _is_mxfp4(key: QuantKey | None) -> bool:
    return (
        key is not None
        and key.dtype == scalar_types.float4_e2m1f
        and key.scale2 is None
        and key.scale.dtype == torch.uint8
        and key.scale.group_shape.col == _BLOCK
    )


class FlashInferMxFp4LinearKernel(FlashInferBlockFormat[MxFp4LinearLayerConfig], MxFp4LinearKernel):
    """Blocks of 32 with powers of two as scales, on both sides."""

    kind = "mxfp4"
    n_multiple, k_multiple = 32, 128
    function = "mm_fp4"
    backend = "cute-dsl"
    parameters = (
        "alpha",
        "out_dtype",
        "block_size",
        "use_8x4_sf_layout",
        "backend",
        "use_nvfp4",
    )

    @classmethod
    def device_refusal(cls, capability: int | None) -> str | None:
        """What FlashInfer says, without SM12x."""
        if capability is not None and capability // 10 == 12:
            return (
                f"mm_fp4 by {cls.backend} takes NVFP4 alone on compute capability {capability}; "
                "MXFP4 on SM100 and SM103"
            )
        return super().device_refusal(capability)

    @classmethod
    def rounding_refusal(cls, config: MxFp4LinearLayerConfig) -> str | None:
        """Activations in MXFP4 as well."""
        key = config.activation_quant_key
        if key is None:
            return "weight-only layers (activations as they are) are not implemented"
        return None if _is_mxfp4(key) else f"activations as {key}; MXFP4 only"

    @classmethod
    def _supports_quant_scheme(
        cls, weight_key: QuantKey | None, activation_key: QuantKey | None
    ) -> bool:
        return _is_mxfp4(activation_key)

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Padded rows, and scales in tiles."""
        return {
            "weight": self.packed_rows(tensors["weight"], 2),
            "weight_scale": self.packed_scale(tensors["weight_scale"], _BLOCK),
        }

    def multiply(
        self,
        layer: torch.nn.Module,
        codes: torch.Tensor,
        scale: torch.Tensor,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        """``mm_fp4`` with blocks of 32."""
        weight, weight_scale = weight_of(layer)
        out: torch.Tensor = ops.fp4_mm(
            codes, weight, scale, weight_scale, None, out_dtype, _BLOCK, self.backend
        )
        return out
