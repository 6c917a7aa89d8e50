"""Floor 3: what a kernel is. One generic base, one child for each kernel type."""

from qcore.kernels.base import Answer, LinearKernel, answer, tensor_of
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.kernels.block_scaled_mm import (
    Fp8BlockScaledDynamicMMLinearKernel,
    Fp8BlockScaledMMLinearKernel,
)
from qcore.kernels.codebook import CodebookLinearKernel
from qcore.kernels.composite import CompositeLinearKernel
from qcore.kernels.gguf import GGUFLinearKernel
from qcore.kernels.loading import process_weights
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.kernels.moe import (
    ExpertsKernel,
    GroupedExpertsKernel,
    MoeMxfp4Kernel,
    MoeWNA16Kernel,
)
from qcore.kernels.parameters import permute_param_layout_, replace_parameter, set_weight_attrs
from qcore.kernels.scaled_mm import (
    FP8ScaledMMLinearKernel,
    Int8ScaledMMLinearKernel,
    ScaledMMLinearKernel,
)
from qcore.kernels.types import KERNEL_TYPES, KernelType
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

__all__ = [
    "KERNEL_TYPES",
    "Answer",
    "CodebookLinearKernel",
    "CodebookLinearLayerConfig",
    "CompositeLinearKernel",
    "ExpertsKernel",
    "FP8ScaledMMLinearKernel",
    "FP8ScaledMMLinearLayerConfig",
    "Fp8BlockScaledDynamicMMLinearKernel",
    "Fp8BlockScaledMMLinearKernel",
    "Fp8BlockScaledMMLinearLayerConfig",
    "GGUFLinearKernel",
    "GGUFLinearLayerConfig",
    "GroupedExpertsKernel",
    "Int8ScaledMMLinearKernel",
    "Int8ScaledMMLinearLayerConfig",
    "KernelType",
    "LinearKernel",
    "MMLinearLayerConfig",
    "MPLinearKernel",
    "MPLinearLayerConfig",
    "MoeMxfp4Kernel",
    "MoeMxfp4LayerConfig",
    "MoeWNA16Kernel",
    "MoeWNA16LayerConfig",
    "MxFp4LinearKernel",
    "MxFp4LinearLayerConfig",
    "Mxfp8LinearKernel",
    "Mxfp8LinearLayerConfig",
    "NvFp4LinearKernel",
    "NvFp4LinearLayerConfig",
    "ScaledMMLinearKernel",
    "answer",
    "permute_param_layout_",
    "process_weights",
    "replace_parameter",
    "set_weight_attrs",
    "tensor_of",
]
