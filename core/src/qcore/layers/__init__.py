"""Floor 2: one frozen, validated config for each kernel type, and the tensors that go with it."""

from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig, FP8ScaledMMLinearLayerConfig
from qcore.layers.gguf import GGUFLinearLayerConfig
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.moe import ExpertsLayerConfig, MoeMxfp4LayerConfig, MoeWNA16LayerConfig
from qcore.layers.params import ParamSpec

__all__ = [
    "CodebookLinearLayerConfig",
    "ExpertsLayerConfig",
    "FP8ScaledMMLinearLayerConfig",
    "Fp8BlockScaledMMLinearLayerConfig",
    "GGUFLinearLayerConfig",
    "Int8ScaledMMLinearLayerConfig",
    "MMLinearLayerConfig",
    "MPLinearLayerConfig",
    "MoeMxfp4LayerConfig",
    "MoeWNA16LayerConfig",
    "MxFp4LinearLayerConfig",
    "Mxfp8LinearLayerConfig",
    "NvFp4LinearLayerConfig",
    "ParamSpec",
]
