"""wna16_int8_linear: activations rounded to int8, against float64."""

from __future__ import annotations

import pytest
import torch
from cpu_oracle import DTYPES, Layer, assert_close, linear, make_layer, quantize

ops = torch.ops.qcore_cpu
Tensor = torch.Tensor

# N, K, group_size, zero points, g_idx
LAYERS = (
    (64, 256, 128, False, False),
    (1, 1, -1, False, False),
    (15, 31, 32, True, False),
    (17, 100, 32, False, False),
    (17, 100, 16, True, True),
    (33, 640, -1, True, False),
    (16, 640, -1, False, True),
    (80, 640, 64, True, False),
    (31, 100, 7, True, False),
    (65, 200, 1000, True, False),
    (20, 33, 1, True, False),
)
ROWS = (0, 1, 2, 3, 4, 5, 8, 12, 13, 33)


def _groups(layer: Layer) -> list[Tensor]:
    """The inputs that are rounded together: those of a group, 128 at a time."""
    size = layer.K if layer.group_size == -1 else layer.group_size
    group_of = torch.arange(layer.K) // size if layer.g_idx is None else layer.g_idx
    groups = []
    for g in range(int(group_of.max()) + 1):
        groups += (group_of == g).nonzero()[:, 0].split(128)
    return groups


def rounded(layer: Layer, x: Tensor, per_row: bool) -> Tensor:
    """The activations that the op is to multiply, in float64."""
    result = torch.zeros(x.shape, dtype=torch.float64)
    for inputs in [torch.arange(layer.K)] if per_row else _groups(layer):
        if len(x) and len(inputs):
            codes, scale, _ = quantize(x[:, inputs], True)
            result[:, inputs] = codes.double() * scale.double()
    return result


def run(layer: Layer, x: Tensor, per_row: bool, bias: Tensor | None = None) -> Tensor:
    return ops.wna16_int8_linear(x, *layer.arguments(bias), per_row)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_linear(isa: str, bits: int, per_row: bool) -> None:
    for index, (N, K, group_size, zero_points, g_idx) in enumerate(LAYERS):
        layer = make_layer(N, K, bits, group_size, zero_points, g_idx, DTYPES[index % 3])
        bias = torch.randn(N) if index % 2 else None
        arguments = layer.arguments(bias)
        for dtype in DTYPES:
            for M in ROWS:
                x = torch.randn(M, K).to(dtype)
                out = ops.wna16_int8_linear(x, *arguments, per_row)
                assert out.dtype == dtype
                assert_close(out, rounded(layer, x, per_row), layer.weight, bias)


@pytest.mark.parametrize("bits", [2, 4, 5, 6, 8])
def test_no_sum_saturates(isa: str, bits: int) -> None:
    """Every product at its largest, of both signs: 16 bits hold only so many of them."""
    for code in (0, (1 << bits) - 1):
        layer = make_layer(17, 512, bits, 128)
        layer.packed.fill_(-1 if code else 0)
        layer.weight = (code - (1 << (bits - 1))) * layer.scale.double().repeat_interleave(128, 1)
        for zero in (False, True):
            if zero:  # the products then start from 0, not from minus the zero point's share
                layer.zero_point = torch.zeros(-(-17 // (32 // bits)), 4, dtype=torch.int32)
                layer.weight = code * layer.scale.double().repeat_interleave(128, 1)
            for M in (1, 3, 13):
                for x in (torch.full((M, 512), 3.0), torch.full((M, 512), -3.0)):
                    assert_close(run(layer, x, False), x, layer.weight)


def test_error_is_that_of_the_rounding(isa: str) -> None:
    """About 0.6 % for gaussian activations; it shrinks with the group."""
    for group_size, most in ((128, 0.0075), (32, 0.006)):
        layer = make_layer(256, 1024, 4, group_size)
        x = torch.randn(16, 1024)
        exact = linear(x, layer.weight)
        error = (run(layer, x, False) - exact).norm() / exact.norm()
        assert 0.003 < error < most


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 5, 6, 8])
def test_row_does_not_depend_on_batch_or_threads(isa: str, bits: int, dtype: torch.dtype) -> None:
    for N, K, group_size, zero_points in ((100, 300, 100, True), (150, 512, 128, False)):
        layer = make_layer(N, K, bits, group_size, zero_points)
        arguments = layer.arguments(torch.randn(N))
        x = torch.randn(270, K).to(dtype)
        whole = ops.wna16_int8_linear(x, *arguments)
        torch.set_num_threads(1)
        assert torch.equal(ops.wna16_int8_linear(x, *arguments), whole)
        torch.set_num_threads(2)
        for first, last in ((0, 1), (269, 270), (5, 7), (3, 8), (100, 112), (200, 217), (1, 257)):
            part = ops.wna16_int8_linear(x[first:last], *arguments)
            assert torch.equal(part, whole[first:last]), (first, last)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_one_row_of_any_length(isa: str, bits: int) -> None:
    """Short and long: one block of columns at a time or several."""
    for K in (1152, 4096, 4160):
        layer = make_layer(150, K, bits, 64, K == 1152)
        x = torch.randn(3, K)
        out = run(layer, x[1:2], False)
        assert_close(out, rounded(layer, x, False)[1:2], layer.weight)
        assert torch.equal(out, run(layer, x, False)[1:2])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_show(isa: str, value: float, per_row: bool) -> None:
    for zero_points in (False, True):
        layer = make_layer(40, 64, 4, 32, zero_points)
        for dtype in DTYPES:
            x = torch.randn(12, 64).to(dtype)
            clean = run(layer, x, per_row)
            x[4, 50] = value
            out = run(layer, x, per_row)
            assert bool(out[4].isnan().all())
            kept = [row for row in range(12) if row != 4]
            assert torch.equal(out[kept], clean[kept])


def test_extremes(isa: str) -> None:
    layer = make_layer(20, 64, 4, 32)
    assert not run(layer, torch.zeros(3, 64), False).any()
    x = torch.randn(3, 64)
    tiny, huge = x * 1e-30, x * 1e30
    assert_close(run(layer, tiny, False) * 1e30, rounded(layer, tiny, False) * 1e30, layer.weight)
    assert_close(run(layer, huge, False) * 1e-30, rounded(layer, huge, False) * 1e-30, layer.weight)
    assert run(layer, torch.full((1, 64), 1e-45), False).isfinite().all()


def test_offsets_and_integer_scales(isa: str) -> None:
    for bits in (2, 4, 5, 6, 8):
        layer = make_layer(37, 512, bits, 32)
        integers, halves = torch.randint(-128, 128, (2, 37, 16)), torch.rand(2, 37, 2).half() * 1e-3
        values = integers.double() * halves.double().repeat_interleave(8, 2)
        scale, offset = values.repeat_interleave(32, 2)
        plain = layer.weight / layer.scale.double().repeat_interleave(32, 1)
        plain += 0 if bits == 8 else 1 << (bits - 1)
        packed, _, *rest = layer.arguments()
        for M in (1, 4, 20):
            x = torch.randn(M, 512)
            out = ops.wna16_int8_linear(
                x,
                packed,
                _by_lanes(integers[0].to(torch.int8)),
                *rest,
                False,
                None,
                _by_lanes(integers[1].to(torch.int8)),
                _by_lanes(halves[0]),
                _by_lanes(halves[1]),
            )
            assert_close(out, rounded(layer, x, False), plain * scale + offset)


def _by_lanes(values: Tensor) -> Tensor:
    N, G = values.shape
    lanes = torch.zeros(-(-N // 16), G, 16, dtype=values.dtype)
    for n in range(N):
        lanes[n // 16, :, n % 16] = values[n]
    return lanes


def test_strided_input_and_out_variant(isa: str) -> None:
    layer = make_layer(34, 48, 4, 16, True)
    wide = torch.randn(10, 4, 96)
    for x in (wide[0, :, :48], wide[..., ::2], wide[0, 0, :48], torch.randn(0, 3, 48)):
        dense = run(layer, x.contiguous(), False)
        assert torch.equal(run(layer, x, False), dense)
        out = torch.full((*x.shape[:-1], 34), 9.0)
        ops.wna16_int8_linear_out(x, *layer.arguments(), False, out)
        assert torch.equal(out, dense)


def test_opcheck() -> None:
    layer = make_layer(20, 64, 4, 32, True, True)
    arguments = (torch.randn(2, 3, 64), *layer.arguments(torch.randn(20)))
    torch.library.opcheck(ops.wna16_int8_linear.default, (*arguments, True, torch.float16))
    out = torch.empty(2, 3, 20)
    torch.library.opcheck(ops.wna16_int8_linear_out.default, (*arguments, False, out))


def test_errors() -> None:
    layer = make_layer(20, 60, 4, 30)
    with pytest.raises(RuntimeError, match=r"x has shape \[3, 61\]; .* in_features = 60"):
        run(layer, torch.randn(3, 61), False)
    with pytest.raises(RuntimeError, match="x is Double; allowed"):
        run(layer, torch.randn(3, 60).double(), False)
