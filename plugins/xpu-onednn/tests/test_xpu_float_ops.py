"""The ops with weights of 8-bit and 4-bit floats, against float64."""

from __future__ import annotations

import pytest
import torch
from qcore_xpu import ops
from xpu_oracle import E2M1, allowed, generator, pack_nibbles

pytestmark = pytest.mark.runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
PATHS = ("auto", "sycl")


def floats(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, generator=generator(seed)) * 4).to(dtype)


def scales(shape: tuple[int, ...], seed: int, dtype: torch.dtype = F32) -> torch.Tensor:
    if dtype == E8M0:
        made = torch.randint(120, 132, shape, generator=generator(seed), dtype=torch.uint8)
        return made.view(E8M0)
    return (torch.rand(shape, generator=generator(seed)) + 0.5).to(dtype)


def compare(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, operand: torch.dtype = F32
) -> None:
    bound = allowed(a, b, out.dtype, operand)
    error = (out.double() - a @ b.t()).abs()
    assert bool((error <= bound).all()), (ops.last_implementation(), float((error / bound).max()))


def spread(scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    wide = scale.double()
    wide = wide.repeat_interleave(rows // wide.shape[0], 0)
    return wide.repeat_interleave(columns // wide.shape[1], 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("out_dtype", [BF16, F16, None])
@pytest.mark.parametrize("a_scale", [(1,), (9, 1), None])
@pytest.mark.parametrize("b_scale", [(1,), (72,), (72, 1), (1, 72), None])
def test_fp8_by_tensor_row_and_output(
    b_scale: tuple[int, ...] | None,
    a_scale: tuple[int, ...] | None,
    out_dtype: torch.dtype | None,
    dtype: torch.dtype,
    path: str,
) -> None:
    M, N, K = 9, 72, 200
    a, b = floats((M, K), 1, dtype), floats((N, K), 2, dtype)
    a_s = None if a_scale is None else scales(a_scale, 3)
    b_s = None if b_scale is None else scales(b_scale, 4)
    with ops.using(path):
        out = ops.fp8_gemm(a, b.t(), out_dtype, a_s, b_s, None)
    assert out.dtype == (out_dtype or F16)
    real_a = a.double() * (1 if a_s is None else a_s.double())
    real_b = b.double() * (1 if b_s is None else b_s.double().reshape(-1, 1))
    compare(out, real_a, real_b)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("kind", "k_group", "n_group"),
    [(F32, 128, 128), (F32, 64, 64), (F32, 128, 1), (E8M0, 32, 1), (F32, 256, 32)],
)
@pytest.mark.parametrize("shape", [(5, 128, 256), (1, 64, 512), (33, 384, 256)])
def test_fp8_by_blocks(
    shape: tuple[int, int, int], kind: torch.dtype, k_group: int, n_group: int, path: str
) -> None:
    M, N, K = shape
    n_group = min(n_group, N)
    a, b = floats((M, K), 1, E4M3), floats((N, K), 2, E4M3)
    a_s, b_s = scales((M, K // k_group), 3, kind), scales((K // k_group, N // n_group), 4, kind)
    bias = torch.randn(N, generator=generator(5))
    with ops.using(path):
        out = ops.fp8_gemm(a, b.t(), F32, a_s, b_s, None)
        biased = ops.fp8_gemm(a, b.t(), F32, a_s, b_s, bias)
    compare(out, a.double() * spread(a_s, M, K), b.double() * spread(b_s.t(), N, K))
    torch.testing.assert_close(biased, out + bias, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_fp8_of_forms(path: str) -> None:
    K, N = 64, 40
    a, b = floats((6, K), 1, E4M3), floats((N, K), 2, E4M3)
    a_s, b_s = scales((6, 1), 3), scales((N,), 4)
    with ops.using(path):
        plain = ops.fp8_gemm(a, b.t(), F32, a_s, b_s, None)
        compare(plain, a.double() * a_s.double(), b.double() * b_s.double()[:, None])
        rows = b.t().contiguous()  # [K, N] by rows rather than the view of [N, K]
        assert torch.allclose(
            ops.fp8_gemm(a, rows, F32, a_s, b_s, None), plain, rtol=1e-5, atol=1e-3
        )
        cube = ops.fp8_gemm(a.reshape(2, 3, K), b.t(), F32, a_s.reshape(2, 3, 1), b_s, None)
        assert torch.equal(cube.reshape(6, N), plain)
        bytes_ = ops.fp8_gemm(a.view(torch.uint8), b.view(torch.uint8).t(), F32, a_s, b_s, None)
        assert torch.equal(bytes_, plain)
        assert ops.fp8_gemm(a[:0], b.t(), F32, a_s[:0], b_s, None).shape == (0, N)
        out = torch.empty(6, N, dtype=F32)
        assert ops.fp8_gemm_out(out, a, b.t(), F32, a_s, b_s, None) is out
        assert torch.equal(out, plain)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("b_scale", [(1,), (40,), (2, 40), (4, 5)])
def test_fp8_weights_alone(b_scale: tuple[int, ...], dtype: torch.dtype, path: str) -> None:
    M, N, K = 7, 40, 128
    x, b = torch.randn(M, K, generator=generator(1)).to(dtype), floats((N, K), 2, E4M3)
    b_s = scales(b_scale, 4)
    bias = torch.randn(N, generator=generator(5)).to(dtype)
    with ops.using(path):
        out = ops.fp8_gemm_w8a16(x, b.t(), b_s, None)
        wide = ops.fp8_gemm_w8a16(x, b.t(), b_s, bias, F32)
    by_output = spread(b_s.t(), N, K) if len(b_scale) == 2 else b_s.double().reshape(-1, 1)
    real = b.double() * by_output
    assert out.dtype == dtype
    compare(out, x.double(), real, operand=dtype)
    compare(wide - bias, x.double(), real, operand=dtype)


def e2m1(rows: int, K: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(0, 16, (rows, K), generator=generator(seed))
    return pack_nibbles(codes, "uint8"), E2M1[codes]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("out_dtype", [BF16, F16, None, F32])
@pytest.mark.parametrize("kind", [E8M0, torch.uint8])
@pytest.mark.parametrize("shape", [(1, 8, 32), (9, 72, 256), (33, 19, 96)])
def test_fp4(
    shape: tuple[int, int, int], kind: torch.dtype, out_dtype: torch.dtype | None, path: str
) -> None:
    M, N, K = shape
    (a, real_a), (b, real_b) = e2m1(M, K, 1), e2m1(N, K, 2)
    a_s, b_s = scales((M, K // 32), 3, E8M0), scales((K // 32, N), 4, E8M0)
    with ops.using(path):
        out = ops.fp4_gemm(a, b.t(), a_s.view(kind), b_s.view(kind), out_dtype, None)
    assert out.dtype == (out_dtype or F16)
    compare(out, real_a * spread(a_s, M, K), real_b * spread(b_s.t(), N, K))


@pytest.mark.parametrize("path", PATHS)
def test_fp4_with_scales_of_nvfp4(path: str) -> None:
    M, N, K = 6, 24, 64
    (a, real_a), (b, real_b) = e2m1(M, K, 1), e2m1(N, K, 2)
    a_s, b_s = scales((M, K // 16), 3, E4M3), scales((K // 16, N), 4, E4M3)
    with ops.using(path):
        out = ops.fp4_gemm(a, b.t(), a_s, b_s, F32, None)
        bytes_ = ops.fp4_gemm(a, b.t(), a_s.view(torch.uint8), b_s.view(torch.uint8), F32, None)
    compare(out, real_a * spread(a_s, M, K), real_b * spread(b_s.t(), N, K))
    assert torch.equal(bytes_, out)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("out_dtype", [BF16, None, F32])
@pytest.mark.parametrize("form", ["tensor", "token", "mx"])
@pytest.mark.parametrize("shape", [(1, 8, 32), (9, 72, 256), (33, 19, 96)])
def test_fp4_with_activations_of_fp8(
    shape: tuple[int, int, int], form: str, out_dtype: torch.dtype | None, path: str
) -> None:
    M, N, K = shape
    a, (b, real_b) = floats((M, K), 1, E4M3), e2m1(N, K, 2)
    bias = torch.randn(N, generator=generator(5))
    kind, groups = (E8M0, K // 32) if form == "mx" else (E4M3, K // 16)
    b_s = scales((groups, N), 4, kind)
    a_s = {
        "tensor": scales((1,), 3),
        "token": scales((M, 1), 3),
        "mx": scales((M, K // 32), 3, E8M0),
    }[form]
    with ops.using(path):
        out = ops.fp4_gemm_w4a8(a, b.t(), a_s, b_s, out_dtype, None)
        wide = ops.fp4_gemm_w4a8(a.view(torch.uint8), b.t(), a_s, b_s, F32, bias)
    real_a = a.double() * (spread(a_s, M, K) if form == "mx" else a_s.double())
    assert out.dtype == (out_dtype or F16)
    real_b = real_b * spread(b_s.t(), N, K)
    compare(out, real_a, real_b)
    # The bias as one more input.
    ones, column = torch.ones(M, 1).double(), bias.double()[:, None]
    compare(wide, torch.cat((real_a, ones), 1), torch.cat((real_b, column), 1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_fp4_weights_alone(dtype: torch.dtype, path: str) -> None:
    M, N, K = 5, 72, 96
    b, real_b = e2m1(N, K, 2)
    x, b_s = torch.randn(M, K, generator=generator(1)).to(dtype), scales((K // 32, N), 4, E8M0)
    bias = torch.randn(N, generator=generator(5)).to(dtype)
    with ops.using(path):
        out = ops.fp4_gemm_w4a16(x, b.t(), b_s, None, None)
        wide = ops.fp4_gemm_w4a16(x, b.t(), b_s, F32, bias)
    real = real_b * spread(b_s.t(), N, K)
    compare(out, x.double(), real, operand=dtype)
    compare(wide - bias, x.double(), real, operand=dtype)
