"""`CutlassNvFp4LinearKernel`: NVFP4 weights and activations on SM100 and SM120."""

from __future__ import annotations

import torch
from qcore.kernels.base import Answer, answer
from qcore.layers.microscaling import NvFp4LinearLayerConfig

from qcore_cuda import library
from qcore_cuda.kernels.cutlass_nvfp4_operands import NvFp4BySwizzledOperands

__all__ = ["CutlassNvFp4LinearKernel"]


class CutlassNvFp4LinearKernel(NvFp4BySwizzledOperands):
    """By CUTLASS's block-scaled kernels, one tile for each generation. Compiled, never run.

    N is padded to 8 and K to 32.
    """

    n_multiple = 8
    out_dtypes = (torch.bfloat16, torch.float16)

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the library has the device's own code."""
        return answer(library.refusal(compute_capability, "100a", "120a"))

    def __init__(self, config: NvFp4LinearLayerConfig) -> None:
        super().__init__(config)
        library.load()

    def multiply(
        self,
        codes: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        weight_scale: torch.Tensor,
        alpha: torch.Tensor,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        """The library's product."""
        return torch.ops.qcore_cuda.cutlass_scaled_fp4_mm.new(  # type: ignore[no-any-return]
            codes, weight, scale, weight_scale, alpha, out_dtype
        )
