"""`qcore_flashinfer.quantize.quantize_blocks` as one Triton kernel: codes and swizzled scales."""

import torch
import triton
import triton.language as tl
from qcore.triton.jit.numbers import (
    decode_e8m0,
    encode_mx_scale,
    has_no_number,
    round_e2m1,
    round_e4m3,
)
from qcore.triton.runtime import on_device_of

from qcore_flashinfer.layouts import round_up

__all__ = ["quantize_by_triton"]


@triton.jit
def _e4m3_bits(x):
    """The byte of a value that e4m3 has; NaN is 0x7F."""
    size = tl.abs(x)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits >> 20) & 0x7FF) - (120 << 3)  # exponent and three bits of mantissa
    subnormal = (size * 512.0).to(tl.int32)
    code = tl.where(size < 0.015625, subnormal, normal)
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return tl.where(x == x, code | sign, 0x7F)


@triton.jit
def _e2m1_bits(x):
    """The code of a value that e2m1 has."""
    twice = (tl.abs(x) * 2.0).to(tl.int32)  # 0 1 2 3 4 6 8 12
    code = tl.where(twice < 4, twice, tl.where(twice < 8, 2 + twice // 2, 4 + twice // 4))
    return code | ((x.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def _quantize_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    outer_ptr,
    M,
    K,
    blocks,
    columns,
    count,
    x_stride,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One lane for each scale, those of the padding included.
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, block = index // columns, index % columns
    there = (index < count) & (row < M) & (block < blocks)
    half: tl.constexpr = SIZE // 2
    pair = block[:, None] * SIZE + 2 * tl.arange(0, half)[None, :]
    source = x_ptr + row[:, None] * x_stride + pair
    mask = there[:, None]
    even = tl.load(source, mask=mask & (pair < K), other=0.0).to(tl.float32)
    odd = tl.load(source + 1, mask=mask & (pair + 1 < K), other=0.0).to(tl.float32)
    amax = tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), axis=1)
    wrong = has_no_number(even, 1) | has_no_number(odd, 1)
    amax = tl.where(wrong, float("nan"), amax)
    if KIND == "nvfp4":
        outer = tl.load(outer_ptr)
        inner = tl.math.div_rn(tl.math.div_rn(amax, 6.0), outer)
        inner = round_e4m3(tl.where(inner > 448.0, 448.0, inner))
        scale = _e4m3_bits(tl.where(wrong, float("nan"), inner))
        step = inner * outer
        positive = step > 0.0
        step = tl.where(positive, step, 1.0)
        even = tl.where(positive[:, None], even, 0.0)
        odd = tl.where(positive[:, None], odd, 0.0)
    else:
        EMAX: tl.constexpr = 8 if KIND == "mxfp8" else 2
        scale = encode_mx_scale(amax, EMAX)
        step = decode_e8m0(scale)
    even = tl.math.div_rn(even, tl.broadcast_to(step[:, None], even.shape))
    odd = tl.math.div_rn(odd, tl.broadcast_to(step[:, None], odd.shape))
    if KIND == "mxfp8":
        even = _e4m3_bits(round_e4m3(_clamp(even)))
        odd = _e4m3_bits(round_e4m3(_clamp(odd)))
        target = codes_ptr + row[:, None] * (blocks * SIZE) + pair
        tl.store(target, even.to(tl.uint8), mask=mask)
        tl.store(target + 1, odd.to(tl.uint8), mask=mask)
    else:
        codes = _e2m1_bits(round_e2m1(even)) | (_e2m1_bits(round_e2m1(odd)) << 4)
        target = codes_ptr + row[:, None] * (blocks * half) + pair // 2
        tl.store(target, codes.to(tl.uint8), mask=mask)
    tile = (row // 128) * (columns // 4) + block // 4
    inside = (row % 32) * 16 + (row % 128) // 32 * 4 + block % 4
    scale = tl.where(there, scale, 0)
    tl.store(scale_ptr + tile * 512 + inside, scale.to(tl.uint8), mask=index < count)


@triton.jit
def _clamp(x):
    x = tl.where(x > 448.0, 448.0, x)
    return tl.where(x < -448.0, -448.0, x)


def quantize_by_triton(
    x: torch.Tensor, kind: str, outer: torch.Tensor | None, K_padded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qcore_flashinfer.quantize.quantize_blocks`."""
    size = 16 if kind == "nvfp4" else 32
    x = x if x.stride(-1) == 1 else x.contiguous()
    M, K = x.shape
    blocks = K_padded // size
    rows, columns = round_up(M, 128), round_up(blocks, 4)
    row = K_padded if kind == "mxfp8" else K_padded // 2
    codes = torch.empty((M, row), dtype=torch.uint8, device=x.device)
    scale = torch.empty((rows, columns), dtype=torch.uint8, device=x.device)
    count, block = rows * columns, 64
    if count:
        with on_device_of(x):
            _quantize_kernel[(triton.cdiv(count, block),)](
                x,
                codes,
                scale,
                outer if outer is not None else scale,
                M,
                K,
                blocks,
                columns,
                count,
                x.stride(0),
                KIND=kind,
                SIZE=size,
                BLOCK=block,
            )
    return codes, scale
