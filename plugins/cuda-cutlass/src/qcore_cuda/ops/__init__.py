"""The ops, as Python functions: they check what torch cannot, allocate, and call the library.

Each is also ``torch.ops.qcore_cuda.NAME``, with the schema that the function's module gives; the
functions load the library when they are first called.
"""

from __future__ import annotations

from qcore_cuda.ops.awq import awq_dequantize, awq_gemm
from qcore_cuda.ops.fakes import register_fakes
from qcore_cuda.ops.gptq import gptq_dequantize, gptq_gemm, gptq_shuffle
from qcore_cuda.ops.marlin import (
    awq_marlin_repack,
    gptq_marlin_repack,
    marlin_dequantize,
    marlin_gemm,
)
from qcore_cuda.ops.quantize import (
    per_token_group_fp8_quant,
    per_token_group_fp8_quant_packed,
    scaled_fp4_quant,
    scaled_fp8_quant,
    scaled_int8_quant,
)
from qcore_cuda.ops.scaled_fp4_mm import cutlass_scaled_fp4_mm
from qcore_cuda.ops.scaled_linear import fp8_block_linear, fp8_linear, int8_linear
from qcore_cuda.ops.scaled_mm import (
    cutlass_scaled_mm,
    cutlass_scaled_mm_azp,
    scaled_mm_by,
    scaled_mm_paths,
)

__all__ = [
    "awq_dequantize",
    "awq_gemm",
    "awq_marlin_repack",
    "cutlass_scaled_fp4_mm",
    "cutlass_scaled_mm",
    "cutlass_scaled_mm_azp",
    "fp8_block_linear",
    "fp8_linear",
    "gptq_dequantize",
    "gptq_gemm",
    "gptq_marlin_repack",
    "gptq_shuffle",
    "int8_linear",
    "marlin_dequantize",
    "marlin_gemm",
    "per_token_group_fp8_quant",
    "per_token_group_fp8_quant_packed",
    "register_fakes",
    "scaled_fp4_quant",
    "scaled_fp8_quant",
    "scaled_int8_quant",
    "scaled_mm_by",
    "scaled_mm_paths",
]
