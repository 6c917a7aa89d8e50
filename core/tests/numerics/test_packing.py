import numpy as np
import pytest
import torch
from qcore.errors import WeightError
from qcore.numerics.packing import (
    pack_int32,
    pack_uint4,
    unpack_dense_int32,
    unpack_int32,
    unpack_uint4,
)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 8, 31, 64])
def test_packing_against_plain_integers(bits, dim, size):
    rng = np.random.default_rng(bits * 100 + size)
    codes = rng.integers(0, 1 << bits, size=(size, 5) if dim == 0 else (5, size))
    packed = pack_int32(torch.from_numpy(codes), bits, dim).numpy().astype(np.uint32)
    factor = 32 // bits
    lines = codes if dim == 1 else codes.T
    words = packed if dim == 1 else packed.T
    for line, line_words in zip(lines, words, strict=True):
        for position, code in enumerate(line):
            word, slot = divmod(position, factor)
            assert (int(line_words[word]) >> (bits * slot)) & ((1 << bits) - 1) == code
    back = unpack_int32(pack_int32(torch.from_numpy(codes), bits, dim), bits, size, dim)
    assert np.array_equal(back.numpy(), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 11, 32, 75])
def test_words_without_gaps(bits, dim, size):
    """A row is one integer: code i at bit ``bits * i``."""
    rng = np.random.default_rng(bits * 100 + size)
    codes = rng.integers(0, 1 << bits, size=(5, size))
    rows = []
    for line in codes.tolist():
        whole = sum(code << (bits * i) for i, code in enumerate(line))
        count = -(-size * bits // 32)
        rows.append([(whole >> (32 * i)) & 0xFFFFFFFF for i in range(count)])
    words = torch.from_numpy(np.array(rows, np.uint32).view(np.int32).copy())
    got = unpack_dense_int32(words if dim == 1 else words.t(), bits, size, dim)
    assert np.array_equal((got if dim == 1 else got.t()).numpy(), codes)


def test_unpacking_the_wrong_size_says_so():
    with pytest.raises(WeightError, match="take 3 int32 words without gaps, got 4"):
        unpack_dense_int32(torch.zeros(2, 4, dtype=torch.int32), 3, 32, 1)
    with pytest.raises(WeightError, match="4 int32 words, got 3"):
        unpack_int32(torch.zeros(2, 3, dtype=torch.int32), 4, 32, 1)


def test_uint4_round_trip():
    codes = torch.randint(0, 16, (7, 32), dtype=torch.uint8)
    packed = pack_uint4(codes)
    assert int(packed[0, 0]) == int(codes[0, 0]) + 16 * int(codes[0, 1])
    assert torch.equal(unpack_uint4(packed), codes)
