"""The product of NVFP4 with NVFP4: ``out = alpha * (a * scale_a) @ (b * scale_b).T``."""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake, fake_nothing

__all__ = ["cutlass_scaled_fp4_mm"]

Tensor = torch.Tensor


def cutlass_scaled_fp4_mm(
    a: Tensor,
    b: Tensor,
    block_scale_a: Tensor,
    block_scale_b: Tensor,
    alpha: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """Multiply on the tensor cores of SM100 or SM120.

    Args:
        a: uint8 [M, K / 2], two codes in a byte, the even element low; K a multiple of 32.
        b: uint8 [N, K / 2]; N a multiple of 8.
        block_scale_a: e4m3, one for each 16 of a's K, in the 128x4 order and padded to it, as
            `scaled_fp4_quant` gives them (as int32, uint8 or float8_e4m3fn).
        block_scale_b: b's.
        alpha: float32, one element.
        out_dtype: float16 or bfloat16.

    Returns:
        [M, N] of ``out_dtype``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    library.load()
    return torch.ops.qcore_cuda.cutlass_scaled_fp4_mm.new(  # type: ignore[no-any-return]
        a, b, block_scale_a, block_scale_b, alpha, out_dtype
    )


fake_nothing("cutlass_scaled_fp4_mm")


@fake("cutlass_scaled_fp4_mm.new")
def _scaled_fp4_mm(
    a: Tensor,
    b: Tensor,
    block_scale_a: Tensor,
    block_scale_b: Tensor,
    alpha: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)
