"""`GGUFLinearKernel`: weights in the blocks of a GGUF file, float activations."""

from __future__ import annotations

from typing import ClassVar

from qcore.kernels.base import LinearKernel
from qcore.layers.gguf import GGUFLinearLayerConfig

__all__ = ["GGUFLinearKernel"]


class GGUFLinearKernel(LinearKernel[GGUFLinearLayerConfig]):
    """Base of the "gguf" kernels."""

    kernel_type: ClassVar[str] = "gguf"
