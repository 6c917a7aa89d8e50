"""Activations as codes and swizzled scales, as the products of block formats read them.

Rounded as `qcore.numerics.activation_quant` has it, NaN included. FlashInfer's own quantizers are
not used: MXFP4's takes the next power of two from 1.5 of a block's magnitude on, not from 1.75, by
which checkpoints are calibrated; MXFP8's makes 448 of a NaN; their code is empty below sm_100.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from qcore.numerics.activation_quant import mx_scale, mxfp8_quant
from qcore.numerics.packing import pack_uint4
from qcore.numerics.small_floats import E2M1_MAX, decode_e8m0, encode_e2m1

from qcore_flashinfer.layouts import pad_to, round_up, swizzle_128x4

__all__ = ["BLOCK", "quantize_blocks", "quantize_blocks_in_torch"]

BLOCK = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32}
"""Elements that share a scale."""


def _sizes(kind: str, K_padded: int, M: int) -> tuple[int, int, int]:
    """Bytes in a row of codes; rows and columns of the scales."""
    codes = K_padded if kind == "mxfp8" else K_padded // 2
    return codes, round_up(M, 128), round_up(K_padded // BLOCK[kind], 4)


def quantize_blocks_in_torch(
    x: torch.Tensor, kind: str, outer: torch.Tensor | None, K_padded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_blocks` as tensor operations."""
    rows = pad_to(x.to(torch.float32), 1, K_padded)
    if kind == "mxfp8":
        values, scale = mxfp8_quant(rows)
        return values.contiguous().view(torch.uint8), swizzle_128x4(scale)
    blocks = rows.reshape(x.shape[0], K_padded // BLOCK[kind], BLOCK[kind])
    if kind == "mxfp4":
        scale = mx_scale(blocks, emax=2)
        scaled = blocks / decode_e8m0(scale)[..., None]
    else:
        assert outer is not None
        outer = outer.to(torch.float32).reshape(1)
        inner = (blocks.abs().amax(-1) / E2M1_MAX / outer).clamp(max=448.0)
        inner = inner.to(torch.float8_e4m3fn)
        scale = inner.view(torch.uint8)
        step = (inner.to(torch.float32) * outer)[..., None]
        scaled = torch.where(step > 0, blocks / step, torch.zeros_like(blocks))
    codes = encode_e2m1(scaled).reshape(x.shape[0], K_padded)
    return pack_uint4(codes), swizzle_128x4(scale)


@torch.library.custom_op("qcore_flashinfer::quantize_blocks", mutates_args=())
def quantize_blocks(
    x: torch.Tensor, kind: str, outer: torch.Tensor | None, K_padded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows in blocks of 16 or 32.

    Args:
        x: float [M, K].
        kind: ``nvfp4``, ``mxfp4`` or ``mxfp8``.
        outer: of NVFP4: float32 [1] that multiplies all of the scales.
        K_padded: K with the zeros that the product wants behind it.

    Returns:
        uint8 [M, K'/2] (two codes in a byte, the even one low) or, of MXFP8, [M, K']; and the
        scales, uint8 [round_up(M, 128), round_up(K'/block, 4)] in tiles of 128 x 4.
    """
    if x.is_cuda and find_spec("triton") is not None:
        from qcore_flashinfer.jit_quantize import quantize_by_triton

        return quantize_by_triton(x, kind, outer, K_padded)
    return quantize_blocks_in_torch(x, kind, outer, K_padded)


@quantize_blocks.register_fake
def _(
    x: torch.Tensor, kind: str, outer: torch.Tensor | None, K_padded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    row, rows, columns = _sizes(kind, K_padded, x.shape[0])
    codes = x.new_empty((x.shape[0], row), dtype=torch.uint8)
    return codes, x.new_empty((rows, columns), dtype=torch.uint8)
