"""`KERNEL_TYPES`: the kinds of layer, each with its config class and the base of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcore.kernels.base import LinearKernel
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.kernels.codebook import CodebookLinearKernel
from qcore.kernels.gguf import GGUFLinearKernel
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.kernels.moe import MoeMxfp4Kernel, MoeWNA16Kernel
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel, Int8ScaledMMLinearKernel
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    GGUFLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MoeMxfp4LayerConfig,
    MoeWNA16LayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)

__all__ = ["KERNEL_TYPES", "KernelType"]


@dataclass(frozen=True)
class KernelType:
    """A kind of layer.

    Attributes:
        name: in the registry and in settings.
        config_class: the layers.
        base_class: what a kernel derives from (a composite of such kernels does as well).
        about: in a few words.
        routed: whether rows are sent to experts, so that kernels are run by ``apply`` with the
            routing, and not by ``apply_weights``.
    """

    name: str
    config_class: type[MMLinearLayerConfig]
    base_class: type[LinearKernel[Any]]
    about: str
    routed: bool = False


KERNEL_TYPES: dict[str, KernelType] = {
    kind.name: kind
    for kind in (
        KernelType("mp", MPLinearLayerConfig, MPLinearKernel, "packed integer weights (W4A16 ...)"),
        KernelType(
            "int8",
            Int8ScaledMMLinearLayerConfig,
            Int8ScaledMMLinearKernel,
            "int8 weights and activations",
        ),
        KernelType(
            "fp8",
            FP8ScaledMMLinearLayerConfig,
            FP8ScaledMMLinearKernel,
            "e4m3 weights, scales per tensor or channel",
        ),
        KernelType(
            "fp8_block",
            Fp8BlockScaledMMLinearLayerConfig,
            Fp8BlockScaledMMLinearKernel,
            "e4m3 weights, scales per block",
        ),
        KernelType("nvfp4", NvFp4LinearLayerConfig, NvFp4LinearKernel, "NVFP4 weights"),
        KernelType("mxfp4", MxFp4LinearLayerConfig, MxFp4LinearKernel, "MXFP4 weights"),
        KernelType("mxfp8", Mxfp8LinearLayerConfig, Mxfp8LinearKernel, "MXFP8 weights"),
        KernelType("gguf", GGUFLinearLayerConfig, GGUFLinearKernel, "blocks of GGUF files"),
        KernelType(
            "codebook",
            CodebookLinearLayerConfig,
            CodebookLinearKernel,
            "weights looked up in a table (NF4, HQQ ...)",
        ),
        KernelType(
            "moe_wna16",
            MoeWNA16LayerConfig,
            MoeWNA16Kernel,
            "experts of a mixture, packed integer weights",
            routed=True,
        ),
        KernelType(
            "moe_mxfp4",
            MoeMxfp4LayerConfig,
            MoeMxfp4Kernel,
            "experts of a mixture, MXFP4 weights",
            routed=True,
        ),
    )
}
"""Every kernel type, by name."""
