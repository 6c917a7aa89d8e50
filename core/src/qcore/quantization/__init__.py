"""Floor 7: quantization methods, from a checkpoint's config and tensors to layers with a kernel."""

from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.experts import QuantizedExperts
from qcore.quantization.linear import QuantizedLinear
from qcore.quantization.methods import (
    get_quantization_config,
    quantization_methods,
    read_quantization_config,
)

__all__ = [
    "CanonicalLinear",
    "LinearScheme",
    "QuantizationConfig",
    "QuantizedExperts",
    "QuantizedLinear",
    "get_quantization_config",
    "quantization_methods",
    "read_quantization_config",
]
