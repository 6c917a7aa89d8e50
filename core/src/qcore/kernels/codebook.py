"""`CodebookLinearKernel`: codes that look up their values, activations of 16 or 32 bits."""

from __future__ import annotations

from typing import ClassVar

from qcore.kernels.base import LinearKernel
from qcore.layers.codebook import CodebookLinearLayerConfig

__all__ = ["CodebookLinearKernel"]


class CodebookLinearKernel(LinearKernel[CodebookLinearLayerConfig]):
    """Base of the "codebook" kernels."""

    kernel_type: ClassVar[str] = "codebook"
