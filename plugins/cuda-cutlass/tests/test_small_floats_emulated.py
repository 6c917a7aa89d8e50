"""e2m1 and e4m3: every code as kernels make it; the kernel for a medium number of rows."""

from __future__ import annotations

import pytest
import torch
from small_float_oracle import float_values, random_float_weight, scale_byte
from w4_emulated import COMPILER, converted, emulated, nvfp4_converted
from w4_oracle import activations, assert_product

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ for the emulation of kernels")

HALF, BFLOAT = torch.float16, torch.bfloat16


def test_values_are_those_of_torch() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    of_torch = codes.view(torch.float8_e4m3fn).double()
    assert torch.equal(of_torch.nan_to_num(99.0), float_values(8).nan_to_num(99.0))
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # OCP Microscaling Formats 1.0, table of FP4
    assert float_values(4).tolist() == [*e2m1, *(-v for v in e2m1)]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_every_e4m3(dtype: torch.dtype) -> None:
    """Exactly, wherever in a word, whatever is beside it; NaN as 480, which packing knows of."""
    values = float_values(8)
    values[[0x7F, 0xFF]] = torch.tensor([480.0, -480.0], dtype=torch.float64)
    for code in range(256):
        others = [(code * 37 + 11 * i) % 256 for i in (1, 2, 3)]
        for place in range(4):
            bytes_ = [*others[:place], code, *others[place:]]
            pairs, at_run_time, floats = converted(
                int.from_bytes(bytes(bytes_), "little"), 8, dtype
            )
            wanted = values[torch.tensor(bytes_)]
            assert torch.equal(pairs.reshape(-1).double(), wanted), (code, place)
            assert torch.equal(at_run_time, pairs)
            assert torch.equal(floats.double(), wanted)
    assert converted(0x80, 8, dtype)[0].flatten()[0].signbit()


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_every_e2m1(dtype: torch.dtype) -> None:
    """Exactly, at each place of a shuffled word: pair i is nibbles i and i + 4."""
    values = float_values(4)
    for code in range(16):
        for beside in range(16):
            for place in range(8):
                nibbles = [beside] * 8
                nibbles[place] = code
                word = sum(nibble << 4 * i for i, nibble in enumerate(nibbles))
                pairs, at_run_time, floats = converted(word, 4, dtype)
                wanted = values[torch.tensor(nibbles)]
                assert torch.equal(pairs.t().reshape(-1).double(), wanted), (code, place)
                assert torch.equal(at_run_time, pairs)
                assert torch.equal(floats.double(), wanted)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_every_nvfp4(dtype: torch.dtype) -> None:
    """Every code times every scale, at each place of a word: exactly, but for 2^8."""
    of_e4m3 = {float(v) for v in float_values(8)[1:127]}
    assert of_e4m3 <= {scale_byte(byte) for byte in range(152)}
    values = float_values(4)
    for byte in range(152):
        for first in range(16):
            nibbles = [(first + 3 * i) % 16 for i in range(8)]
            word = sum(nibble << 4 * i for i, nibble in enumerate(nibbles))
            pairs, at_run_time, scale = nvfp4_converted(word, byte, dtype)
            assert scale == scale_byte(byte)
            wanted = values[torch.tensor(nibbles)] * scale * 2.0**-8
            assert torch.equal(pairs.t().reshape(-1).double(), wanted), (byte, nibbles)
            assert torch.equal(at_run_time, pairs)


def rounds_weights(M: int, group_size: int) -> bool:
    """Powers of two and ones round nothing."""
    return M > 16 and group_size == 128


@pytest.mark.parametrize("M", [1, 8, 16, 17, 63, 65])
@pytest.mark.parametrize("group_size", [-1, 32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_and_groups(bits: int, group_size: int, M: int) -> None:
    K, N = 384, 160
    for dtype in (HALF, BFLOAT):
        w = random_float_weight(K, N, bits, group_size, dtype)
        x = activations(M, K, dtype)
        assert_product(emulated(x, w), x, w.exact, rounds_weights(M, group_size), dtype)


@pytest.mark.parametrize("M", [1, 16, 17, 33, 65])
@pytest.mark.parametrize("K", [32, 64, 96, 416])
def test_nvfp4(K: int, M: int) -> None:
    """Groups of 16: no weight is rounded."""
    for dtype in (HALF, BFLOAT):
        w = random_float_weight(K, 96, 4, 16, dtype)
        x = activations(M, K, dtype)
        assert_product(emulated(x, w), x, w.exact, False, dtype)
        out = emulated(x, w, column_warps=3, split=2, out_float=True, seed=3)
        assert_product(out, x, w.exact, False, (dtype, "parts"))


@pytest.mark.parametrize("M", [5, 40])
def test_scales_of_groups_and_columns(M: int) -> None:
    for dtype in (HALF, BFLOAT):
        w = random_float_weight(384, 96, 8, 128, dtype, both=True)
        x = activations(M, 384, dtype)
        assert_product(emulated(x, w), x, w.exact, rounds_weights(M, 128), dtype)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("M", [9, 33])
def test_padding_bias_and_parts(M: int, dtype: torch.dtype) -> None:
    """Fewer inputs than codes, fewer columns, parts of K; scales meet sums before the bias."""
    K, N, n_out, k_in = 416, 96, 77, 403
    for bits, group_size in ((4, -1), (8, -1), (4, 16)):
        w = random_float_weight(K, N, bits, group_size, dtype)
        x = activations(M, k_in, dtype)
        bias = torch.randn(n_out)
        with_one = torch.cat([x, torch.ones(M, 1, dtype=dtype)], 1)
        exact = torch.cat([w.exact[:k_in, :n_out], bias.double()[None]])
        for division in ((0, 0), (1, 2), (3, 1)):
            for out_float in (False, True):
                out = emulated(
                    x, w, bias=bias, n_out=n_out, out_float=out_float,
                    column_warps=division[0], split=division[1],
                )  # fmt: skip
                assert_product(out, with_one, exact, False, (bits, group_size, division, out_float))
