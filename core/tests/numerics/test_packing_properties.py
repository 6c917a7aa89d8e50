"""Every packing of `qcore.numerics`, there and back, on any shape, dtype and memory layout.

What a packed word must be is said here by Python's integers, one row at a time.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qcore.errors import WeightError
from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.numerics.gguf_blocks import dequantize_blocks
from qcore.numerics.packing import (
    pack_int32,
    pack_uint4,
    unpack_dense_int32,
    unpack_int32,
    unpack_uint4,
)
from qcore.numerics.small_floats import decode_e2m1, decode_e8m0, encode_e2m1, encode_e8m0

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
BITS = st.integers(1, 8)
SEEDS = st.integers(0, 2**32)
QUICK = settings(max_examples=60, deadline=None)


def laid_out(tensor, layout):
    """The same values, elsewhere in memory."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and tensor.numel():
        wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3))
        wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2] = tensor
        return wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2]
    return tensor.contiguous()


SHAPES = st.lists(st.integers(0, 40), min_size=1, max_size=3)
LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided"])


def random_codes(shape, bits, seed, dtype=torch.int64):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, generator=random).to(dtype)


def lines(tensor, dim):
    moved = tensor.movedim(dim, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1]).tolist()


@QUICK
@given(SHAPES, BITS, st.sampled_from(INTEGERS), LAYOUTS, st.data(), SEEDS)
def test_words_with_gaps(shape, bits, dtype, layout, data, seed):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    codes = random_codes(shape, bits, seed, dtype)
    words = pack_int32(laid_out(codes, layout), bits, dim)
    assert words.dtype == torch.int32
    assert words.is_contiguous()
    factor, size = 32 // bits, shape[dim]
    for row, packed in zip(lines(codes, dim), lines(words, dim), strict=True):
        parts = [row[at : at + factor] for at in range(0, size, factor)]
        made = [sum(code << (bits * i) for i, code in enumerate(part)) for part in parts]
        assert [word & 0xFFFFFFFF for word in packed] == made
    back = unpack_int32(laid_out(words, layout), bits, size, dim)
    assert back.dtype == torch.uint8
    assert torch.equal(back, codes.to(torch.uint8))
    for wrong in (1 + words.shape[dim] * factor, size - factor):
        if wrong >= 0:
            with pytest.raises(WeightError, match="int32 words"):
                unpack_int32(words, bits, wrong, dim)


@QUICK
@given(SHAPES, BITS, LAYOUTS, st.data(), SEEDS)
def test_words_without_gaps(shape, bits, layout, data, seed):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    codes, size = random_codes(shape, bits, seed), shape[dim]
    moved = codes.movedim(dim, -1)
    count = -(-size * bits // 32)
    made = []
    for row in lines(codes, dim):
        whole = sum(code << (bits * i) for i, code in enumerate(row))
        words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
        made += [word - (word >> 31 << 32) for word in words]
    words = torch.tensor(made, dtype=torch.int32).reshape(*moved.shape[:-1], count)
    words = words.movedim(-1, dim)
    back = unpack_dense_int32(laid_out(words, layout), bits, size, dim)
    assert torch.equal(back, codes.to(torch.uint8))
    if 32 % bits == 0:
        assert torch.equal(pack_int32(codes, bits, dim), words)
    with pytest.raises(WeightError, match="without gaps"):
        unpack_dense_int32(words, bits, size + 32, dim)


@QUICK
@given(BITS, st.integers(-(2**20), 2**20), st.sampled_from(INTEGERS))
def test_what_lies_above_the_bits_does_not_reach_the_neighbours(bits, value, dtype):
    codes = torch.tensor([1, value, 1]).to(dtype)
    got = unpack_int32(pack_int32(codes, bits, 0), bits, 3, 0)
    assert got.tolist() == [1, int(codes[1]) & (2**bits - 1), 1]


@pytest.mark.parametrize("bits", [-1, 0, 9, 32])
def test_other_numbers_of_bits_are_refused(bits):
    words = torch.zeros(4, dtype=torch.int32)
    for call in (
        pack_int32,
        lambda *a: unpack_int32(*a[:2], 4, 0),
        lambda *a: unpack_dense_int32(*a[:2], 4, 0),
    ):
        with pytest.raises(WeightError, match=f"codes of {bits} bits are not packed"):
            call(words, bits, 0)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_floats_are_refused(dtype):
    with pytest.raises(WeightError, match=r"codes are .*; they must be integers"):
        pack_int32(torch.zeros(4).to(dtype), 4, 0)
    for unpack in (unpack_int32, unpack_dense_int32):
        with pytest.raises(WeightError, match=r"words are .*; they must be int32"):
            unpack(torch.zeros(1).to(dtype), 4, 8, 0)
        with pytest.raises(WeightError, match="words are int64; they must be int32"):
            unpack(torch.zeros(1, dtype=torch.int64), 4, 8, 0)


@QUICK
@given(SHAPES, LAYOUTS, SEEDS)
def test_nibbles_of_fp4_formats(shape, layout, seed):
    shape[-1] *= 2
    codes = random_codes(shape, 4, seed, torch.uint8)
    packed = pack_uint4(laid_out(codes, layout))
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    for row, made in zip(lines(codes, -1), lines(packed, -1), strict=True):
        assert made == [row[i] + 16 * row[i + 1] for i in range(0, len(row), 2)]
    assert torch.equal(unpack_uint4(laid_out(packed, layout)), codes)


def test_an_odd_number_of_nibbles_is_refused():
    with pytest.raises(WeightError, match="3 codes of 4 bits do not fill bytes"):
        pack_uint4(torch.zeros(2, 3, dtype=torch.uint8))


# -- small floats: all codes ---------------------------------------------------------------------

EIGHT_BITS = {
    # dtype: exponent bits, mantissa bits, bias, has infinities, has one NaN in place of minus zero
    torch.float8_e4m3fn: (4, 3, 7, False, False),
    torch.float8_e5m2: (5, 2, 15, True, False),
    torch.float8_e4m3fnuz: (4, 3, 8, False, True),
    torch.float8_e5m2fnuz: (5, 2, 16, False, True),
}


def value_of(code, exponent_bits, mantissa_bits, bias, infinities, fnuz):
    """From the definition of the format."""
    sign = -1.0 if code >> 7 else 1.0
    exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = code & (2**mantissa_bits - 1)
    top = exponent == 2**exponent_bits - 1
    if fnuz:
        if code == 0x80:
            return math.nan
    elif infinities and top:
        return math.nan if mantissa else sign * math.inf
    elif top and mantissa == 2**mantissa_bits - 1:
        return math.nan
    fraction = mantissa / 2**mantissa_bits
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_every_code_of_eight_bit_floats(dtype):
    """torch's own types, which weights and inputs are kept in, are the formats of the standards."""
    codes = torch.arange(256).to(torch.uint8)
    expected = torch.tensor([value_of(code, *EIGHT_BITS[dtype]) for code in range(256)])
    values = codes.view(dtype).to(torch.float32)
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(values.nan_to_num(), expected.nan_to_num())
    good = ~expected.isnan() & expected.isfinite()
    assert torch.equal(values[good].to(dtype).view(torch.uint8), codes[good])


def test_every_code_of_e8m0():
    codes = torch.arange(256).to(torch.uint8)
    values = decode_e8m0(codes, torch.float64)
    assert values[:255].tolist() == [2.0 ** (code - 127) for code in range(255)]
    assert values[255].isnan()
    # The scale of blocks whose largest magnitude is 2**(code - 127 + emax) is that code.
    for emax in (2, 8):
        back = encode_e8m0(values[: 255 - emax] * 2.0**emax, emax)
        assert torch.equal(back, codes[: 255 - emax])
    assert encode_e8m0(values[255:], 2).tolist() == [255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_code_of_e2m1(dtype):
    codes = torch.arange(16).to(torch.uint8)
    assert torch.equal(encode_e2m1(decode_e2m1(codes, dtype)), codes)


@QUICK
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_e2m1_is_the_nearest_code(values):
    x = torch.tensor(values)
    got = decode_e2m1(encode_e2m1(x)).tolist()
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    for value, made in zip(x.tolist(), got, strict=True):
        if math.isnan(value):
            assert abs(made) == 6.0
            continue
        nearest = min(abs(abs(value) - entry) for entry in table) if abs(value) < 6 else None
        assert nearest is None or abs(abs(value) - abs(made)) == nearest
        assert nearest is not None or abs(made) == 6.0
        assert math.copysign(1, made) == math.copysign(1, value)


# -- GGUF: the gguf package says what the bytes mean -----------------------------------------------

WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.mark.parametrize("qtype", GGUF_BLOCK_TYPES)
def test_gguf_blocks_of_any_bytes_in_any_shape(qtype):
    gguf = pytest.importorskip("gguf", reason="the oracle of this test")
    np = pytest.importorskip("numpy")
    kind, theirs = GGUF_BLOCK_TYPES[qtype], gguf.GGMLQuantizationType[qtype]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 4), max_size=2), st.integers(1, 3), LAYOUTS, SEEDS)
    def check(outer, blocks, layout, seed):
        shape = (*outer, blocks * kind.type_size)
        rows = random_codes(shape, 8, seed, torch.uint8)
        got = dequantize_blocks(laid_out(rows, layout), qtype)
        assert got.shape == (*outer, blocks * kind.block_size)
        if rows.numel() == 0:
            return
        with np.errstate(all="ignore"):
            flat = rows.reshape(-1, shape[-1]).numpy()
            expected = torch.from_numpy(gguf.quants.dequantize(flat, theirs)).reshape(got.shape)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())
        if qtype not in WRITABLE:
            return
        # What the package packs is what comes back, nearer than any scale is wide.
        values = torch.randn(got.shape, generator=torch.Generator().manual_seed(seed))
        made = gguf.quants.quantize(values.reshape(-1, got.shape[-1]).numpy(), theirs)
        back = dequantize_blocks(torch.from_numpy(made), qtype).reshape(got.shape)
        again = gguf.quants.dequantize(made, theirs)
        assert torch.equal(back, torch.from_numpy(again).reshape(got.shape))
        peak = values.abs().reshape(-1, kind.block_size).amax(1, keepdim=True)
        error = (back - values).abs().reshape(-1, kind.block_size)
        assert bool((error <= 2 * peak / 2 ** (int(qtype[1]) - 1)).all())

    check()
