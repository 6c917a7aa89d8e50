"""A layer in one call, in ``torch.ops.qcore_rocm``: quantize, multiply, scale, add the bias.

They take ``x`` [..., K] of any strides and return [..., N]. They are for AMD's GPUs; with
`qcore_rocm.launching.stand_in` for what stands in for one.
"""

from qcore_rocm.ops.scaled import (
    FP8_BLOCK_LINEAR,
    FP8_LINEAR,
    INT8_LINEAR,
    fp8_block_linear,
    fp8_linear,
    fp8_mm,
    int8_linear,
)
from qcore_rocm.ops.w4a16 import W4A16_LINEAR, w4a16_linear

__all__ = [
    "FP8_BLOCK_LINEAR",
    "FP8_LINEAR",
    "INT8_LINEAR",
    "W4A16_LINEAR",
    "fp8_block_linear",
    "fp8_linear",
    "fp8_mm",
    "int8_linear",
    "w4a16_linear",
]
