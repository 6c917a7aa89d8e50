"""Small floats, inside kernels. Nothing here needs hardware that knows these formats."""

import triton
import triton.language as tl

__all__ = [
    "decode_e2m1",
    "decode_e4m3",
    "decode_e8m0",
    "encode_mx_scale",
    "has_no_number",
    "nearest_integer",
    "round_bfloat16",
    "round_e2m1",
    "round_e4m3",
    "tile_of",
]


@triton.jit
def nearest_integer(x):
    """Halves to even, for magnitudes below 2**22; larger ones stay large."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def has_no_number(x, axis: tl.constexpr):
    """Whether there is a NaN along ``axis``: maxima pass over it."""
    return tl.max((x != x).to(tl.int32), axis=axis) > 0


@triton.jit
def round_bfloat16(x):
    """The nearest bfloat16, as a float32: Triton's interpreter cuts off where it converts."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def round_e4m3(x):
    """The nearest value of e4m3, of magnitudes up to 448."""
    exponent = tl.maximum(
        (x.to(tl.int32, bitcast=True) >> 23) & 0xFF, 121
    )  # subnormals below 2**-6
    unit = ((exponent - 3) << 23).to(tl.float32, bitcast=True)
    inverse = ((257 - exponent) << 23).to(tl.float32, bitcast=True)
    return nearest_integer(x * inverse) * unit


@triton.jit
def round_e2m1(x):
    """The nearest value of e2m1, at most 6."""
    size = tl.abs(x)
    steps = tl.where(size < 2.0, 2.0, tl.where(size < 4.0, 1.0, 0.5))
    rounded = nearest_integer(x * steps) / steps
    rounded = tl.where(rounded > 6.0, 6.0, rounded)
    return tl.where(rounded < -6.0, -6.0, rounded)


@triton.jit
def decode_e2m1(codes):
    """Values of 4-bit codes: their bits, moved to where float16 has exponent and mantissa."""
    codes = codes.to(tl.int16)
    bits = ((codes & 7) << 9) | ((codes & 8) << 12)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def decode_e4m3(codes):
    """Values of bytes."""
    codes = codes.to(tl.int16)
    bits = ((codes & 0x7F) << 7) | ((codes & 0x80) << 8)
    values = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((codes & 0x7F) == 0x7F, float("nan"), values)


@triton.jit
def decode_e8m0(codes):
    """Powers of two; 0 is 2**-127, 255 is NaN."""
    codes = codes.to(tl.int32)
    bits = tl.where(codes == 0, 0x00400000, codes << 23)
    bits = tl.where(codes == 255, 0x7FC00000, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def encode_mx_scale(amax, EMAX: tl.constexpr):
    """The e8m0 code for blocks of that magnitude: `qcore.numerics.activation_quant.mx_scale`."""
    bits = amax.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) >= 0x600000).to(tl.int32)
    codes = tl.minimum(tl.maximum(exponent - EMAX, 0), 254)
    return tl.where(amax < float("inf"), codes, 255)


@triton.jit
def tile_of(tile, tiles_m, tiles_n, TOGETHER: tl.constexpr):
    """Row and column of a tile, in an order in which neighbours share what the cache has."""
    in_stripe = TOGETHER * tiles_n
    first = tile // in_stripe * TOGETHER
    height = tl.minimum(tiles_m - first, TOGETHER)
    return first + tile % in_stripe % height, tile % in_stripe // height
