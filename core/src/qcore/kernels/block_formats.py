"""`NvFp4LinearKernel`, `MxFp4LinearKernel`, `Mxfp8LinearKernel`: block formats of 4 and 8 bits."""

from __future__ import annotations

from typing import ClassVar

from qcore.facts.quant_key import QuantKey
from qcore.kernels.base import LinearKernel
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)

__all__ = ["MxFp4LinearKernel", "Mxfp8LinearKernel", "NvFp4LinearKernel"]


class NvFp4LinearKernel(LinearKernel[NvFp4LinearLayerConfig]):
    """Base of the "nvfp4" kernels."""

    kernel_type: ClassVar[str] = "nvfp4"


class MxFp4LinearKernel(LinearKernel[MxFp4LinearLayerConfig]):
    """Base of the "mxfp4" kernels."""

    kernel_type: ClassVar[str] = "mxfp4"

    @classmethod
    def _supports_quant_scheme(
        cls, weight_key: QuantKey | None, activation_key: QuantKey | None
    ) -> bool:
        """Whether the kernel multiplies these two; by default weight-only."""
        return activation_key is None


class Mxfp8LinearKernel(LinearKernel[Mxfp8LinearLayerConfig]):
    """Base of the "mxfp8" kernels."""

    kernel_type: ClassVar[str] = "mxfp8"
