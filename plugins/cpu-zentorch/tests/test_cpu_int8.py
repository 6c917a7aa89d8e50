"""The int8 ops against exact integer arithmetic."""

from __future__ import annotations

import pytest
import torch
from cpu_oracle import DTYPES, quantize
from qcore.numerics.activation_quant import dynamic_int8_quant, static_int8_quant

ops = torch.ops.qcore_cpu
SHAPES = ((1, 1), (15, 31), (17, 100), (1, 640), (640, 256), (33, 5))
ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 33)


def _check(
    out: torch.Tensor,
    codes: torch.Tensor,
    azp: torch.Tensor | int,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:
    exact = (codes.double() - azp) @ weight.double().t()
    expected = exact * scale.double() * weight_scale.double().reshape(1, -1)
    magnitude = expected.abs()
    if bias is not None:
        expected = expected + bias.double()
    unit = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[out.dtype]
    bound = 4e-7 * magnitude + (2e-7 + unit) * expected.abs() + 1e-7
    assert out.shape == expected.shape
    assert bool(((out.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_quant_is_the_core_s(isa: str, dtype: torch.dtype, symmetric: bool) -> None:
    for K in (1, 15, 16, 33, 640):
        x = (torch.randn(9, K) * 10 ** torch.linspace(-5, 3, 9)[:, None]).to(dtype)
        x[1] = 0
        x[2] = x[2].abs()
        x[3, K // 2] = float("nan")
        x[4, 0] = float("inf")
        x[5, K - 1] = float("-inf")
        codes, scale, azp = ops.dynamic_scaled_int8_quant(x, symmetric)
        expected_codes, expected_scale, expected_azp = dynamic_int8_quant(x, symmetric)
        assert torch.equal(codes, expected_codes)
        assert torch.equal(scale.nan_to_num(-1), expected_scale.nan_to_num(-1))
        if expected_azp is None:
            expected_azp = torch.zeros_like(azp)
        assert torch.equal(azp, expected_azp)
        finite = [0, 1, 2, 6, 7, 8]
        own_codes, own_scale, own_azp = quantize(x[finite], symmetric)
        assert torch.equal(codes[finite].float(), own_codes)
        assert torch.equal(scale[finite], own_scale)
        assert torch.equal(azp[finite].float(), own_azp)


def test_dynamic_quant_of_extremes(isa: str) -> None:
    huge = torch.tensor([[3e38, -3e38, 1.0]])
    small = huge * 1e-38 * 1e-7
    # Scales that are denormal: so far off that a code may want to be 190.
    least = torch.arange(1, 400)[:, None] * torch.tensor([[1.4e-45, -1.4e-45]])
    for x in (huge, small, least, torch.full((1, 20), 1e-45), torch.zeros(2, 0)):
        for symmetric in (True, False):
            result = ops.dynamic_scaled_int8_quant(x, symmetric)
            for mine, core in zip(result, dynamic_int8_quant(x, symmetric), strict=True):
                if core is not None:
                    assert torch.equal(mine.float().nan_to_num(-1), core.float().nan_to_num(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_static_quant_is_the_core_s(isa: str, dtype: torch.dtype) -> None:
    x = (torch.randn(5, 3, 77) * 4).to(dtype)
    x[0, 0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    for scale in (torch.tensor(0.03), torch.tensor([0.5])):
        assert torch.equal(ops.static_scaled_int8_quant(x, scale), static_int8_quant(x, scale))
        for azp in (torch.tensor([-128], dtype=torch.int32), torch.tensor(17, dtype=torch.int32)):
            codes = ops.static_scaled_int8_quant(x, scale, azp)
            assert torch.equal(codes, static_int8_quant(x, scale, azp))


def test_pack(isa: str) -> None:
    for N, K in SHAPES:
        weight = torch.randint(-128, 128, (N, K), dtype=torch.int8)
        packed, col_sums = ops.int8_pack(weight)
        assert torch.equal(col_sums, weight.sum(1, dtype=torch.int32))
        spread = (packed.int() - 128).permute(0, 2, 1, 3).reshape(-1, packed.shape[1] * 4)
        assert torch.equal(spread[:N, :K], weight.int())
        assert not spread[N:].any()
        assert not spread[:, K:].any()
        strided = weight.t().contiguous().t()
        assert torch.equal(ops.int8_pack(strided)[0], packed)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_linear(isa: str, dtype: torch.dtype, symmetric: bool) -> None:
    for index, (N, K) in enumerate(SHAPES):
        weight = torch.randint(-128, 128, (N, K), dtype=torch.int8)
        packed, col_sums = ops.int8_pack(weight)
        scale = (torch.rand(N) * 0.01 + 0.001).to(DTYPES[index % 3])
        bias = torch.randn(N).to(DTYPES[(index + 1) % 3]) if index % 2 else None
        for M in ROWS:
            x = torch.randn(M, K).to(dtype)
            out = ops.int8_scaled_linear(x, packed, scale, col_sums, bias, None, None, symmetric)
            assert out.dtype == dtype
            if M:
                codes, x_scale, azp = quantize(x, symmetric)
                _check(out, codes, azp.double(), x_scale, weight, scale, bias)


@pytest.mark.parametrize("azp", [None, -128, 0, 41, 127])
def test_static_linear(isa: str, azp: int | None) -> None:
    weight = torch.randint(-128, 128, (40, 100), dtype=torch.int8)
    packed, col_sums = ops.int8_pack(weight)
    weight_scale, input_scale = torch.tensor([0.004]), torch.tensor(0.02)
    point = None if azp is None else torch.tensor([azp], dtype=torch.int32)
    for M in (1, 5, 20):
        x = torch.randn(M, 100)
        out = ops.int8_scaled_linear(
            x, packed, weight_scale, col_sums, None, input_scale, point, azp is None
        )
        codes = torch.round(x / input_scale) + (azp or 0)
        codes = codes.clamp(-127 if azp is None else -128, 127)
        _check(out, codes, azp or 0, input_scale.reshape(1, 1), weight, weight_scale)


@pytest.mark.parametrize("K", [256, 4096, 65536])
def test_no_sum_saturates_or_wraps(isa: str, K: int) -> None:
    """Every product at its largest: where vpmaddubsw saturates, and where 32 bits nearly end."""
    for value in (127, -128):
        packed, col_sums = ops.int8_pack(torch.full((17, K), value, dtype=torch.int8))
        scale = torch.ones(17)
        for M in (1, 9):
            for sign in (1.0, -1.0):
                x = torch.full((M, K), sign)
                out = ops.int8_scaled_linear(x, packed, scale, col_sums)
                expected = sign * K * value
                assert torch.allclose(out, torch.full_like(out, expected), rtol=1e-6)
                # From -128 to 127, with the zero point at either end.
                point = torch.tensor([127 if sign < 0 else -128], dtype=torch.int32)
                out = ops.int8_scaled_linear(
                    x * 255, packed, scale, col_sums, None, torch.ones(1), point, False
                )
                assert torch.allclose(out, torch.full_like(out, 255 * expected), rtol=1e-6)


def _static(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The exact product of codes (-128 to 127) with a weight, as the op computes it."""
    packed, col_sums = ops.int8_pack(weight)
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    return ops.int8_scaled_linear(
        codes.float(), packed, torch.ones(weight.shape[0]), col_sums, None, one, zero, False
    )


@pytest.mark.parametrize("first", [-128, -127, -65, -64, -1, 0, 1, 63, 64, 65, 127])
def test_each_pair_of_codes_with_the_largest_weights(isa: str, first: int) -> None:
    """All pairs of codes: on both sides of where two products of bytes fill 16 bits."""
    second = torch.arange(-128, 128)
    codes = torch.stack([torch.full_like(second, first), second], 1)
    codes = torch.cat([codes, codes.flip(1), torch.zeros_like(codes)], 1)  # three pairs
    weight = torch.tensor([-128, -127, -1, 0, 127], dtype=torch.int8)[:, None].repeat(1, 6)
    weight[:, 3] = 127
    for rows in (slice(0, 256), slice(200, 201), slice(100, 102)):
        out = _static(codes[rows], weight)
        assert torch.equal(out.double(), codes[rows].double() @ weight.double().t())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.15, 0.25, 1.0])
@pytest.mark.parametrize("K", [66, 2048, 4101, 9000])
def test_large_codes_among_small_ones(isa: str, K: int, share: float) -> None:
    """Few large codes are added one by one, many make words of all: over chunks, tiles and rows."""
    weight = torch.randint(-128, 128, (70, K), dtype=torch.int8)
    weight[::7] = 127
    weight[1::7] = -128
    for M in (1, 2, 3, 4, 5, 11):
        large = torch.where(torch.rand(M, K) < 0.5, torch.tensor(-128), torch.tensor(127))
        codes = torch.where(torch.rand(M, K) < share, large, torch.randint(-40, 41, (M, K)))
        if M > 4:
            codes[:, : K // 2] = codes[:, : K // 2].clamp(-40, 40)  # chunks of both kinds
            codes[1] = 127
        exact = codes.double() @ weight.double().t()
        assert torch.equal(_static(codes, weight).double(), exact.float().double())


def test_row_does_not_depend_on_batch_or_threads(isa: str) -> None:
    weight = torch.randint(-128, 128, (150, 200), dtype=torch.int8)
    packed, col_sums = ops.int8_pack(weight)
    scale = torch.rand(150)
    for dtype in DTYPES:
        x = torch.randn(270, 200).to(dtype)
        torch.set_num_threads(2)
        whole = ops.int8_scaled_linear(x, packed, scale, col_sums)
        torch.set_num_threads(1)
        for first, last in ((0, 270), (0, 1), (269, 270), (5, 7), (100, 108), (1, 257)):
            part = ops.int8_scaled_linear(x[first:last], packed, scale, col_sums)
            assert torch.equal(part, whole[first:last]), (first, last)


def test_not_finite_rows_are_nan(isa: str) -> None:
    packed, col_sums = ops.int8_pack(torch.randint(-128, 128, (20, 40), dtype=torch.int8))
    for symmetric in (True, False):
        for value in (float("nan"), float("inf"), float("-inf")):
            x = torch.randn(12, 40)
            clean = ops.int8_scaled_linear(
                x, packed, torch.ones(20), col_sums, None, None, None, symmetric
            )
            x[6, 30] = value
            out = ops.int8_scaled_linear(
                x, packed, torch.ones(20), col_sums, None, None, None, symmetric
            )
            assert bool(out[6].isnan().all())
            kept = [row for row in range(12) if row != 6]
            assert torch.equal(out[kept], clean[kept])


def test_strided_input_and_out_variant(isa: str) -> None:
    weight = torch.randint(-128, 128, (20, 40), dtype=torch.int8)
    packed, col_sums = ops.int8_pack(weight)
    scale = torch.rand(20)
    wide = torch.randn(6, 4, 80)
    for x in (wide[0, :, :40], wide[..., ::2], wide[0, 0, :40], wide[:0, :, :40]):
        out = ops.int8_scaled_linear(x, packed, scale, col_sums)
        dense = ops.int8_scaled_linear(x.contiguous(), packed, scale, col_sums)
        assert torch.equal(out, dense)
        target = torch.full((*x.shape[:-1], 20), 9.0, dtype=torch.float16)
        ops.int8_scaled_linear_out(x, packed, scale, col_sums, None, None, None, True, target)
        wanted = ops.int8_scaled_linear(
            x, packed, scale, col_sums, None, None, None, True, torch.float16
        )
        assert torch.equal(target, wanted)


def test_errors() -> None:
    packed, col_sums = ops.int8_pack(torch.zeros(20, 40, dtype=torch.int8))
    azp = torch.tensor([3], dtype=torch.int32)

    def run(**changes: object) -> None:
        values = {
            "x": torch.randn(3, 40),
            "packed": packed,
            "weight_scale": torch.ones(20),
            "col_sums": col_sums,
            "bias": None,
            "input_scale": None,
            "azp": None,
            "symmetric": True,
            "out_dtype": None,
        }
        ops.int8_scaled_linear(*{**values, **changes}.values())

    run()
    static = {"input_scale": torch.ones(1)}
    for changes, message in (
        ({"x": torch.randn(3, 44)}, "packed has shape"),
        ({"x": torch.ones(3, 40, dtype=torch.int32)}, "x is Int; allowed: Float, Half, BFloat16"),
        ({"x": torch.tensor(1.0)}, "x has no dimension"),
        ({"x": torch.randn(3, 0)}, "x has K = 0"),
        ({"packed": packed.int()}, "packed is Int; it must be Byte"),
        ({"weight_scale": torch.ones(19)}, r"weight_scale has shape \[19\]"),
        ({"weight_scale": torch.ones(20).double()}, "weight_scale is Double"),
        ({"col_sums": col_sums.float()}, "col_sums is Float"),
        ({"col_sums": col_sums.reshape(1, 20)}, "col_sums has shape"),
        ({"bias": torch.ones(19)}, "bias has shape"),
        ({"azp": azp, "symmetric": False}, "azp is given without input_scale"),
        ({**static, "azp": azp}, "azp is given with symmetric=True"),
        ({**static, "symmetric": False}, "symmetric is False with input_scale"),
        ({"input_scale": torch.ones(2)}, "input_scale has shape"),
        ({"input_scale": torch.ones(1).double()}, "input_scale is Double"),
        ({**static, "azp": azp + 125, "symmetric": False}, "azp is 128; allowed: -128 to 127"),
        ({**static, "azp": azp.float(), "symmetric": False}, "azp is Float"),
        ({"out_dtype": torch.int8}, "out_dtype is Char"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(**changes)
    for weight, message in (
        (torch.zeros(4, 4), "weight is Float; it must be Char"),
        (torch.zeros(4, dtype=torch.int8), "weight has shape"),
        (torch.zeros(0, 4, dtype=torch.int8), "weight has shape"),
        (torch.zeros(1, 65537, dtype=torch.int8), "K = 65537; at most 65536"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.int8_pack(weight)
    with pytest.raises(RuntimeError, match="x is Long"):
        ops.dynamic_scaled_int8_quant(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="input_scale has shape"):
        ops.static_scaled_int8_quant(torch.zeros(2, 2), torch.ones(3))
