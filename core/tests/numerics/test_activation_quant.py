import numpy as np
import pytest
import torch
from qcore.numerics.activation_quant import (
    dynamic_int8_quant,
    group_fp8_quant,
    mxfp4_quant,
    mxfp4_round,
    mxfp8_quant,
    nvfp4_quant,
    nvfp4_round,
    scaled_fp8_quant,
    static_int8_quant,
)
from qcore.numerics.small_floats import E2M1_VALUES, decode_e8m0


def rows(M, K, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(M, K, generator=generator) * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("M", "K"), [(1, 1), (4, 31), (3, 640), (0, 16), (2, 0)])
def test_dynamic_int8_is_within_half_a_step(M, K, symmetric, dtype):
    x = rows(M, K, dtype=dtype) + (0 if symmetric else 5)
    codes, scale, azp = dynamic_int8_quant(x, symmetric)
    assert codes.dtype == torch.int8
    assert scale.shape == (M, 1)
    assert (azp is None) == symmetric
    zero = 0 if azp is None else azp.double()
    back = (codes.double() - zero) * scale.double()
    # An asymmetric code may be off by another half step, as its zero point is rounded too.
    step = 0.5001 if symmetric else 1.0001
    assert bool(((back - x.double()).abs() <= step * scale.double()).all())
    if symmetric:
        assert codes.numel() == 0 or int(codes.min()) >= -127


def test_dynamic_int8_edges():
    x = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("inf"), 1.0], [2.0, -1.0]])
    codes, scale, _ = dynamic_int8_quant(x)
    assert scale[0].item() == 1.0
    assert codes[0].tolist() == [0, 0]
    assert torch.isnan(scale[1:3]).all()
    assert scale[3].item() == np.float32(2.0) / np.float32(127.0)
    assert codes[3].tolist() == [127, -64]


def test_static_int8_saturates_and_rounds_to_even():
    x = torch.tensor([[0.5, 1.5, 2.5, 1000.0, -1000.0]])
    assert static_int8_quant(x, torch.tensor(1.0)).tolist() == [[0, 2, 2, 127, -127]]
    shifted = static_int8_quant(x, torch.tensor(1.0), torch.tensor([3], dtype=torch.int32))
    assert shifted.tolist() == [[3, 5, 5, 127, -128]]


@pytest.mark.parametrize("per_token", [True, False])
def test_fp8_covers_the_maximum(per_token):
    x = rows(5, 100)
    codes, scale = scaled_fp8_quant(x, per_token=per_token)
    assert codes.dtype == torch.float8_e4m3fn
    assert scale.shape == ((5, 1) if per_token else (1,))
    assert float(codes.float().abs().max()) == 448.0
    error = (codes.double() * scale.double() - x.double()).abs()
    # e4m3 has 3 mantissa bits: half a unit is 2**-4 of the value, or of the least normal 2**-6.
    bound = torch.maximum(x.double().abs(), 2.0**-6 * scale.double()) * 2.0**-4
    assert bool((error <= bound * 1.001).all())


def test_fp8_static_and_upper_bound():
    x = torch.tensor([[1000.0, 1.0]])
    codes, _ = scaled_fp8_quant(x, torch.tensor(1.0))
    assert codes.float().tolist() == [[448.0, 1.0]]
    _, bounded = scaled_fp8_quant(x, upper_bound=torch.tensor(448.0))
    assert bounded.item() == 1.0
    empty, one = scaled_fp8_quant(torch.zeros(0, 4))
    assert empty.shape == (0, 4)
    assert one.tolist() == [1.0]


def test_group_fp8_with_a_short_last_group():
    x = rows(3, 300)
    codes, scale = group_fp8_quant(x, 128)
    assert scale.shape == (3, 3)
    for group in range(3):
        part = slice(128 * group, min(300, 128 * group + 128))
        assert torch.allclose(scale[:, group], x[:, part].abs().amax(1) / 448.0)
        assert torch.allclose(
            codes[:, part].float() * scale[:, group : group + 1], x[:, part], rtol=2**-4, atol=1e-3
        )


def test_mxfp8_never_saturates():
    x = rows(64, 64)
    codes, exponents = mxfp8_quant(x)
    back = codes.double() * decode_e8m0(exponents, torch.float64).repeat_interleave(32, 1)
    peak = x.double().abs().reshape(64, 2, 32).amax(-1).repeat_interleave(32, 1)
    # Half a step of 2**-3 at the top of a power of two, and less below.
    assert bool(((back - x.double()).abs() <= peak / 16).all())


@pytest.mark.parametrize("peak", [1.0, 1.5, 1.7499999, 1.75, 1.9999999])
def test_scales_of_mx_blocks_go_up_from_seven_quarters(peak):
    x = torch.full((1, 32), 0.125)
    x[0, 5] = -peak
    _, exponents = mxfp8_quant(x)
    assert int(exponents) - 127 + 8 == (1 if peak >= 1.75 else 0)
    # The largest value of MXFP4 is 6 = 1.5 * 4: what is rounded up lands on 1.75 / 2 * 4 or more.
    assert mxfp4_round(x)[0, 5] == {1.0: -1.0, 1.5: -1.5, 1.7499999: -1.5}.get(peak, -2.0)


def test_mx_blocks_that_are_not_numbers():
    for value in (float("inf"), float("nan")):
        x = torch.ones(1, 32)
        x[0, 0] = value
        assert int(mxfp8_quant(x)[1]) == 255
    assert torch.equal(mxfp4_round(torch.zeros(1, 32)), torch.zeros(1, 32))


def test_fp4_rounding_lands_on_the_grid():
    x = rows(4, 64)
    outer = x.abs().max() / (448 * 6)
    rounded = nvfp4_round(x, outer)
    assert float((rounded - x).abs().max()) < float(x.abs().max()) / 4
    block = mxfp4_round(x)[0, :32]
    scale = 2.0 ** (torch.frexp(x[0, :32].abs().max()).exponent - 1 - 2)
    allowed = torch.tensor(E2M1_VALUES)
    grids = [bool(torch.isin((block / s).abs(), allowed).all()) for s in (scale, 2 * scale)]
    assert any(grids)
    assert torch.equal(nvfp4_round(torch.zeros(1, 16), torch.tensor(1.0)), torch.zeros(1, 16))


def test_fp4_codes_are_the_rounded_numbers():
    table = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)])
    x = rows(5, 64)
    x[1, :32] = 0

    def values(packed):
        return table[torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()]

    codes, exponents = mxfp4_quant(x)
    assert (codes.dtype, exponents.dtype) == (torch.uint8, torch.uint8)
    scale = decode_e8m0(exponents).repeat_interleave(32, 1)
    assert torch.equal(values(codes) * scale, mxfp4_round(x))
    for outer in (x.abs().max() / (448 * 6), x.abs().amax(-1, keepdim=True) / (448 * 6)):
        codes, inner = nvfp4_quant(x, outer)
        assert (codes.dtype, inner.dtype) == (torch.uint8, torch.float8_e4m3fn)
        scale = (inner.float() * outer).repeat_interleave(16, 1)
        assert torch.equal(values(codes) * scale, nvfp4_round(x, outer))
