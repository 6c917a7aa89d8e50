"""The ops, as Python functions; each is also ``torch.ops.qcore_xpu.NAME``, with a fake.

They take tensors on an Intel GPU and work on torch's current stream there. Tensors on the CPU go to
SYCL's CPU device, by the same code. Importing this loads no vendor's library; the first call does.
"""

from __future__ import annotations

from qcore_xpu.ops.fp4 import fp4_gemm, fp4_gemm_w4a8, fp4_gemm_w4a16
from qcore_xpu.ops.fp8 import fp8_gemm, fp8_gemm_out, fp8_gemm_w8a16
from qcore_xpu.ops.int4 import int4_gemm_w4a8, int4_gemm_w4a16
from qcore_xpu.ops.int8 import int8_gemm, int8_gemm_w8a16
from qcore_xpu.ops.matmul import PATHS, last_implementation, using
from qcore_xpu.ops.registration import SCHEMAS

__all__ = [
    "PATHS",
    "SCHEMAS",
    "fp4_gemm",
    "fp4_gemm_w4a8",
    "fp4_gemm_w4a16",
    "fp8_gemm",
    "fp8_gemm_out",
    "fp8_gemm_w8a16",
    "int4_gemm_w4a8",
    "int4_gemm_w4a16",
    "int8_gemm",
    "int8_gemm_w8a16",
    "last_implementation",
    "using",
]
