"""Quantize activations, as plain tensor operations.

Scales multiply: ``x = (q - azp) * scale``. FP8 uses ``amax / 448``. For int8 two definitions are
in use: vLLM's ``amax / 127`` with the codes -127 ... 127, and compressed-tensors' ``amax / 127.5``
with -128 as well. This is the first. The second is half a percent finer, but puts the largest value
of each row exactly between two codes, so that the last bit of a float decides, and it needs -128,
whose negative is no code.

The scale of an MX block is a power of two. The specification takes the one below the block's
largest magnitude, by which what lies above 1.75 of it saturates: at 6 of 7.99, or 448 of 511. Here
it is the one above from 1.75 on, as in compressed-tensors' forward and in vLLM's kernels, so that
checkpoints run as they were calibrated. With e4m3 nothing saturates then.
"""

from __future__ import annotations

import torch

from qcore.numerics.packing import pack_uint4
from qcore.numerics.small_floats import (
    E2M1_MAX,
    decode_e2m1,
    decode_e8m0,
    encode_e2m1,
    encode_e8m0,
)

__all__ = [
    "dynamic_int8_quant",
    "fp8_max",
    "group_fp8_quant",
    "mx_scale",
    "mxfp4_quant",
    "mxfp4_round",
    "mxfp8_quant",
    "nvfp4_quant",
    "nvfp4_round",
    "scaled_fp8_quant",
    "static_int8_quant",
]


def dynamic_int8_quant(
    x: torch.Tensor, symmetric: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Quantize each row to int8.

    Args:
        x: float [M, K].
        symmetric: without a zero point.

    Returns:
        int8 [M, K], scale float32 [M, 1], azp int32 [M, 1] or None. A row of zeros gets scale 1;
        a row with an infinity or NaN gets scale NaN, so that the output shows it.
    """
    x = x.to(torch.float32)
    if x.shape[-1] == 0:
        scale = x.new_ones((*x.shape[:-1], 1))
        return x.to(torch.int8), scale, None if symmetric else scale.to(torch.int32) * 0
    if symmetric:
        scale = x.abs().amax(-1, keepdim=True) / 127.0
        azp = None
    else:
        low = x.amin(-1, keepdim=True).clamp(max=0.0)
        high = x.amax(-1, keepdim=True).clamp(min=0.0)
        scale = (high - low) / 255.0
    finite = torch.isfinite(scale)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    safe = torch.where(finite, scale, torch.ones_like(scale))
    if not symmetric:
        zero = -128 - torch.round(torch.where(finite, low, torch.zeros_like(low)) / safe)
        azp = zero.clamp(-128, 127).to(torch.int32)
    scale = torch.where(finite, scale, torch.full_like(scale, float("nan")))
    return _to_int8(x, safe, azp, symmetric), scale, azp


def static_int8_quant(
    x: torch.Tensor, scale: torch.Tensor, azp: torch.Tensor | None = None
) -> torch.Tensor:
    """Quantize to int8 by a known scale (float32) and zero point (int32), of one element each.

    NaN becomes the code of zero: a static scale has no place to show it.
    """
    return _to_int8(x.to(torch.float32), scale.to(torch.float32), azp, symmetric=azp is None)


def _to_int8(
    x: torch.Tensor, scale: torch.Tensor, azp: torch.Tensor | None, symmetric: bool
) -> torch.Tensor:
    codes = torch.round(x / scale)
    if azp is not None:
        codes = codes + azp.to(torch.float32)
    codes = torch.nan_to_num(codes, nan=0.0).clamp(-127 if symmetric else -128, 127)
    return codes.to(torch.int8)


def fp8_max(dtype: torch.dtype) -> float:
    """The largest magnitude to quantize to: 448; 224 for e4m3fnuz, as ROCm avoids its 240."""
    return 224.0 if dtype == torch.float8_e4m3fnuz else float(torch.finfo(dtype).max)


def scaled_fp8_quant(
    x: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    per_token: bool = False,
    upper_bound: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to FP8, per tensor or per row.

    Args:
        x: float [M, K].
        scale: float32, one element, for static quantization; None to compute it.
        per_token: one scale a row rather than one for the tensor, where it is computed.
        upper_bound: largest magnitude that a computed scale covers.
        dtype: the FP8 dtype.

    Returns:
        FP8 [M, K] and the scale: float32 [1] or [M, 1].
    """
    x = x.to(torch.float32)
    limit = fp8_max(dtype)
    if scale is None:
        if x.numel() == 0:
            scale = x.new_ones((x.shape[0], 1) if per_token else (1,))
        else:
            amax = x.abs().amax(-1, keepdim=True) if per_token else x.abs().max().reshape(1)
            if upper_bound is not None:
                amax = amax.minimum(upper_bound.to(amax))
            scale = amax / limit
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    else:
        scale = scale.to(torch.float32).reshape(1)
    return (x / scale).clamp(-limit, limit).to(dtype), scale


def group_fp8_quant(
    x: torch.Tensor, group_size: int, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize groups of ``group_size`` elements of each row to FP8; the last may be shorter.

    Args:
        x: float [M, K].
        group_size: elements that share a scale.
        dtype: the FP8 dtype.

    Returns:
        FP8 [M, K] and scales float32 [M, ceil(K / group_size)].
    """
    M, K = x.shape
    groups = -(-K // group_size)
    padded = torch.nn.functional.pad(x.to(torch.float32), (0, groups * group_size - K))
    blocks = padded.reshape(M, groups, group_size)
    limit = fp8_max(dtype)
    scale = blocks.abs().amax(-1) / limit
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (blocks / scale[..., None]).clamp(-limit, limit)
    return codes.reshape(M, groups * group_size)[:, :K].to(dtype), scale


def mx_scale(blocks: torch.Tensor, emax: int) -> torch.Tensor:
    """e8m0 codes (uint8) of the last dimension's blocks; see the module for the rounding.

    Args:
        blocks: float32 [..., block].
        emax: the exponent of the element type's largest value: 2 for e2m1, 8 for e4m3.
    """
    amax = blocks.abs().amax(-1)
    # frexp's mantissa is in [0.5, 1); a quarter more carries 1.75 and up over the power of two.
    near_the_next = torch.frexp(amax).mantissa >= 0.875
    return encode_e8m0(torch.where(near_the_next, amax * 1.25, amax), emax)


def mxfp8_quant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to MXFP8: e4m3 [M, K] and e8m0 scales uint8 [M, K/32]; K a multiple of 32."""
    M, K = x.shape
    blocks = x.to(torch.float32).reshape(M, K // 32, 32)
    scale = mx_scale(blocks, emax=8)
    codes = (blocks / decode_e8m0(scale)[..., None]).clamp(-448.0, 448.0)
    return codes.reshape(M, K).to(torch.float8_e4m3fn), scale


def mxfp4_quant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to MXFP4: codes uint8 [M, K/2] and e8m0 scales uint8 [M, K/32]; K a multiple of 32.

    Two codes are in a byte, the even element in the low half.
    """
    codes, scale = _mxfp4(x)
    return pack_uint4(codes.reshape(x.shape)), scale


def mxfp4_round(x: torch.Tensor) -> torch.Tensor:
    """``x`` [M, K] rounded to MXFP4 and back to float32; K a multiple of 32."""
    codes, scale = _mxfp4(x)
    return (decode_e2m1(codes) * decode_e8m0(scale)[..., None]).reshape(x.shape)


def _mxfp4(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K/32, 32], and scales [M, K/32]."""
    M, K = x.shape
    blocks = x.to(torch.float32).reshape(M, K // 32, 32)
    scale = mx_scale(blocks, emax=2)
    return encode_e2m1(blocks / decode_e8m0(scale)[..., None]), scale


def nvfp4_quant(x: torch.Tensor, global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to NVFP4: codes uint8 [M, K/2] and e4m3 scales [M, K/16]; K a multiple of 16.

    Two codes are in a byte, the even element in the low half.

    Args:
        x: float [M, K].
        global_scale: as of `nvfp4_round`.
    """
    codes, inner = _nvfp4(x, global_scale.to(torch.float32).reshape(-1, 1))
    return pack_uint4(codes.reshape(x.shape)), inner


def nvfp4_round(x: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """``x`` [M, K] rounded to NVFP4 and back to float32; K a multiple of 16.

    Args:
        x: float [M, K].
        global_scale: float32, one element (or [M, 1]), that multiplies: amax / (448 * 6).
    """
    outer = global_scale.to(torch.float32).reshape(-1, 1)
    codes, inner = _nvfp4(x, outer)
    return (decode_e2m1(codes) * (inner.to(torch.float32) * outer)[..., None]).reshape(x.shape)


def _nvfp4(x: torch.Tensor, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K/16, 16], and e4m3 scales [M, K/16]."""
    M, K = x.shape
    blocks = x.to(torch.float32).reshape(M, K // 16, 16)
    inner = (blocks.abs().amax(-1) / E2M1_MAX / outer).clamp(max=448.0).to(torch.float8_e4m3fn)
    scale = (inner.to(torch.float32) * outer)[..., None]
    scaled = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks))
    return encode_e2m1(scaled), inner
