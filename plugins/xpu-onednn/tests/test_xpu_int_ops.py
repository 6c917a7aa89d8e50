"""The ops with integer weights against products in float64."""

from __future__ import annotations

import pytest
import torch
from qcore_xpu import ops
from xpu_oracle import allowed, generator, pack_nibbles

pytestmark = pytest.mark.runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
PATHS = ("auto", "sycl")


class Weights:
    """Random codes of 4 bits [N, K], scales and zero points, packed and as float64."""

    def __init__(self, K: int, N: int, group: int, zeros: bool, dtype: torch.dtype) -> None:
        made = generator(K + N)
        size = K if group == -1 else min(group, K)
        groups = -(-K // size)
        codes = torch.randint(0, 16, (N, K), generator=made)
        self.B = pack_nibbles(codes, "int32").t()
        self.scale = (torch.rand(groups, N, generator=made) * 0.1 + 0.01).to(dtype)
        points = torch.randint(0, 16, (groups, N), generator=made)
        if zeros:
            self.zero = pack_nibbles(points, "int32")
        else:
            points = torch.full_like(points, 8)
            self.zero = torch.tensor([8], dtype=torch.int8)
        index = torch.arange(K) // size
        self.value = (codes.t() - points[index]) * self.scale.double()[index]  # [K, N]
        self.terms = (codes.t() + points[index]) * self.scale.double()[index]


def compare(
    out: torch.Tensor, a: torch.Tensor, w: Weights, bias: torch.Tensor | None, operand: torch.dtype
) -> None:
    expected = a @ w.value
    bound = allowed(a, w.terms.t(), out.dtype, operand)
    if bias is not None:
        expected = expected + bias.double()
        bound = bound + bias.double().abs() * torch.finfo(out.dtype).eps
    assert out.shape == expected.shape
    assert bool(((out.double() - expected).abs() <= bound).all()), ops.last_implementation()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1, 24])
def test_w4a16(group: int, zeros: bool, dtype: torch.dtype, path: str) -> None:
    K, N = 256, 72
    w = Weights(K, N, group, zeros, dtype)
    bias = torch.randn(N, generator=generator(3)).to(dtype)
    with ops.using(path):
        for M in (1, 5, 33):
            x = torch.randn(M, K, generator=generator(M)).to(dtype)
            given = bias if M == 5 else None
            out = ops.int4_gemm_w4a16(x, w.B, given, w.scale, w.zero, group, None)
            assert out.dtype == dtype
            compare(out, x.double(), w, given, dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("shape", [(8, 1), (40, 19), (200, 8), (1024, 130)])
def test_w4a16_of_ragged_shapes(shape: tuple[int, int], group: int, path: str) -> None:
    K, N = shape
    w = Weights(K, N, group, False, F32)
    x = torch.randn(7, K, generator=generator(1))
    with ops.using(path):
        compare(
            ops.int4_gemm_w4a16(x, w.B, None, w.scale, w.zero, group, None),
            x.double(),
            w,
            None,
            F32,
        )


@pytest.mark.parametrize("path", PATHS)
def test_w4a16_meets_rows_in_the_order_of_g_idx(path: str) -> None:
    K, N = 128, 40
    w = Weights(K, N, 32, True, F16)
    order = torch.randperm(K, generator=generator(5))
    x = torch.randn(6, K, generator=generator(6)).to(F16)
    with ops.using(path):
        for index in (order, order.to(torch.int32)):
            out = ops.int4_gemm_w4a16(x, w.B, None, w.scale, w.zero, 32, index)
            compare(out, x[:, order].double(), w, None, F16)


@pytest.mark.parametrize("path", PATHS)
def test_w4a16_of_inputs_of_every_form(path: str) -> None:
    K, N = 64, 24
    w = Weights(K, N, 32, False, BF16)
    x = torch.randn(4, 2 * K, generator=generator(7)).to(BF16)
    with ops.using(path):
        for form in (
            x[:, ::2],
            x[:, 3 : K + 3],
            x[:1, :K].expand(5, K),
            x[:, :K].reshape(2, 2, K),
            x[0, :K],
        ):
            out = ops.int4_gemm_w4a16(form, w.B, None, w.scale, w.zero, 32, None)
            assert out.shape == (*form.shape[:-1], N)
            compare(out.reshape(-1, N), form.reshape(-1, K).double(), w, None, BF16)
        empty = ops.int4_gemm_w4a16(x[:0, :K], w.B, None, w.scale, w.zero, 32, None)
        assert empty.shape == (0, N)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("codes", [torch.int8, torch.uint8])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group", [32, 128, -1])
def test_w4a8(group: int, zeros: bool, by_row: bool, codes: torch.dtype, path: str) -> None:
    K, N, M = 256, 48, 9
    w = Weights(K, N, group, zeros, F32)
    info = torch.iinfo(codes)
    a = torch.randint(info.min, info.max + 1, (M, K), generator=generator(1)).to(codes)
    shape = (M, 1) if by_row else (1,)
    scale = torch.rand(shape, generator=generator(2)) * 0.01 + 0.001
    point = torch.randint(-20, 140, shape, generator=generator(3), dtype=torch.int32)
    real = (a.double() - point.double()) * scale.double()
    terms = (a.double().abs() + point.double().abs()) * scale.double()
    bias = torch.randn(N, generator=generator(4))
    with ops.using(path):
        out = ops.int4_gemm_w4a8(a, scale, point, w.B, w.scale, w.zero, group, None, bias, F32)
        half = ops.int4_gemm_w4a8(a, scale, point, w.B, w.scale, w.zero, group, None, None)
    assert half.dtype == F16
    bound = allowed(terms, w.terms.t(), F32, F32) + 1e-6
    assert bool(((out.double() - (real @ w.value + bias.double())).abs() <= bound).all())
    bound = allowed(terms, w.terms.t(), F16, F32)
    assert bool(((half.double() - real @ w.value).abs() <= bound).all())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_int8_over_the_full_range(zero: bool, by_output: bool, by_row: bool, path: str) -> None:
    M, N, K = 17, 40, 520
    made = generator(9)
    a = torch.randint(-128, 128, (M, K), generator=made, dtype=torch.int8)
    b = torch.randint(-128, 128, (N, K), generator=made, dtype=torch.int8)
    a[0], b[0], b[1] = -128, -128, 127  # the largest sums
    a_scale = torch.rand((M, 1) if by_row else (1,), generator=made) + 0.5
    b_scale = torch.rand(N if by_output else 1, generator=made) + 0.5
    point = torch.randint(-128, 128, (M, 1) if by_row else (1,), generator=made, dtype=torch.int32)
    shift = point.double() if zero else 0.0
    real_a = (a.double() - shift) * a_scale.double()
    real_b = b.double() * b_scale.double().reshape(-1, 1)
    with ops.using(path):
        out = ops.int8_gemm(a, b.t(), a_scale, point if zero else None, b_scale, F32, None)
    terms = (a.double().abs() + abs(shift)) * a_scale.double()
    assert bool(
        ((out.double() - real_a @ real_b.t()).abs() <= allowed(terms, real_b, F32, F32)).all()
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("group", [32, -1, 24, 1])
@pytest.mark.parametrize("ordered", [False, True])
def test_int8_weights_alone(ordered: bool, group: int, dtype: torch.dtype, path: str) -> None:
    M, N, K = 9, 19, 100
    made = generator(11)
    b = torch.randint(-128, 128, (N, K), generator=made, dtype=torch.int8)
    size = K if group == -1 else group
    scale = (torch.rand(-(-K // size), N, generator=made) * 0.1 + 0.01).to(dtype)
    order = torch.randperm(K, generator=made) if ordered else None
    x = torch.randn(M, K, generator=made).to(dtype)
    bias = torch.randn(N, generator=made).to(dtype)
    real_b = b.double() * scale.double().t()[:, torch.arange(K) // size]
    real_x = x.double() if order is None else x.double()[:, order]
    with ops.using(path):
        out = ops.int8_gemm_w8a16(x, b.t(), None, scale, group, order, None)
        wide = ops.int8_gemm_w8a16(x[:, None], b.t(), bias, scale, group, order, F32)
        assert ops.int8_gemm_w8a16(x[:0], b.t(), None, scale, group, order, None).shape == (0, N)
    assert out.dtype == dtype
    bound = allowed(real_x, real_b, dtype, dtype)
    assert bool(((out.double() - real_x @ real_b.t()).abs() <= bound).all())
    real_x = torch.cat((real_x, torch.ones(M, 1).double()), 1)
    real_b = torch.cat((real_b, bias.double()[:, None]), 1)
    bound = allowed(real_x, real_b, F32, dtype)
    assert bool(((wide[:, 0].double() - real_x @ real_b.t()).abs() <= bound).all())
