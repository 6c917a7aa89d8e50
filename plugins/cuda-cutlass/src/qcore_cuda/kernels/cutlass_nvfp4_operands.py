"""NVFP4 operands as Blackwell's tensor cores read them: codes padded, scales in tiles."""

from __future__ import annotations

import torch
from qcore.facts.scalar_type import scalar_types
from qcore.layers.base import dtype_name
from qcore.layers.microscaling import NvFp4LinearLayerConfig
from qcore.numerics.packing import pack_uint4
from qcore.numerics.small_floats import E2M1_MAX, encode_e2m1

from qcore_cuda import library, ops
from qcore_cuda.kernels.padding import pad_to

__all__ = ["BLOCK", "nvfp4_refusal", "pack_weight", "quantize_rows", "swizzled"]

BLOCK = 16
"""Elements that share a scale."""

_K = 32
"""K is padded to it: 16 bytes of codes."""


def nvfp4_refusal(
    config: NvFp4LinearLayerConfig, out_dtypes: tuple[torch.dtype, ...]
) -> str | None:
    """Why a product of NVFP4 with NVFP4 is not what ``config`` says; None where it is.

    Args:
        config: the layer.
        out_dtypes: the results that there may be.
    """
    key = config.activation_quant_key
    given = config.out_dtype or config.input_dtype
    allowed = " and ".join(dtype_name(dtype) for dtype in out_dtypes)
    reasons = [
        config.weight_shape is None and "the layer's shape is not known",
        key is None and "weight-only layers (activations as they are) are not implemented",
        key is not None
        and (key.dtype != scalar_types.float4_e2m1f or key.scale2 is None)
        and f"activations as {key}; NVFP4 only",
        given not in out_dtypes and f"results in {dtype_name(given)}; {allowed} only",
    ]
    if key is not None and key.scale2 is not None:
        by_tensor = key.scale2.static and key.scale2.group_shape.is_per_tensor()
        reasons += [
            key.scale.group_shape.col != BLOCK
            and f"activations in blocks of {key.scale.group_shape.col}; {BLOCK} is implemented",
            not by_tensor
            and "activations' scales have a scale by token; one for the tensor is implemented",
        ]
    return "; ".join(str(reason) for reason in reasons if reason) or None


def swizzled(scale: torch.Tensor) -> torch.Tensor:
    """Scales in the order that Blackwell's tensor cores load.

    Rows are padded to 128 and columns to 4 with zeros; of each tile of 128 x 4, byte
    ``(m % 32) * 16 + m // 32 * 4 + k`` holds row ``m`` and column ``k`` (cuBLAS, "1D block scaling
    factors layout").

    Args:
        scale: uint8 [M, S].

    Returns:
        uint8 [ceil128(M), ceil4(S)], contiguous: the bytes in that order.
    """
    padded = pad_to(pad_to(scale, 1, 4), 0, 128)
    rows, columns = padded.shape
    tiles = padded.reshape(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.contiguous().reshape(rows, columns)


def pack_weight(
    weight: torch.Tensor, scale: torch.Tensor, n_multiple: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight's codes, padded, and its scales in tiles.

    Args:
        weight: uint8 [N, K/2].
        scale: e4m3 [N, K/16].
        n_multiple: N is padded to it, K to 32.
    """
    codes = pad_to(pad_to(weight, 1, _K // 2), 0, n_multiple).contiguous()
    return codes, swizzled(pad_to(scale.view(torch.uint8), 1, _K // BLOCK))


@torch.library.custom_op("qcore_cuda_nvfp4::quantize_rows", mutates_args=())
def quantize_rows(
    x: torch.Tensor, outer: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize activations.

    Args:
        x: float [M, K].
        outer: float32 [1]: multiplies every scale.
        inverse: float32 [1]: 1 / ``outer``.

    Returns:
        uint8 [M, K'/2], K' being K padded to 32; and uint8 [ceil128(M), ceil4(K'/16)] in tiles.
    """
    padded = pad_to(x, 1, _K)
    if x.is_cuda and library.refusal() is None:
        codes, tiles = ops.scaled_fp4_quant(padded, inverse, True)
        return codes, tiles.view(torch.uint8)
    blocks = padded.to(torch.float32).reshape(x.shape[0], padded.shape[1] // BLOCK, BLOCK)
    scale = (blocks.abs().amax(-1) / E2M1_MAX / outer).clamp(max=448.0).to(torch.float8_e4m3fn)
    step = (scale.to(torch.float32) * outer)[..., None]
    # Not `step > 0`: a block with NaN has that as its scale and keeps it.
    codes = encode_e2m1(torch.where(step == 0, torch.zeros_like(blocks), blocks / step))
    return pack_uint4(codes.reshape(padded.shape)), swizzled(scale.view(torch.uint8))


@quantize_rows.register_fake
def _(
    x: torch.Tensor, outer: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    M, K = x.shape[0], -(-x.shape[1] // _K) * _K
    shape = (-(-M // 128) * 128, -(-(K // BLOCK) // 4) * 4)
    return x.new_empty((M, K // 2), dtype=torch.uint8), x.new_empty(shape, dtype=torch.uint8)
