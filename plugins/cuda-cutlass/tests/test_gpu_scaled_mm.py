"""Every path of the scaled products against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qcore_cuda import library, ops

pytestmark = pytest.mark.gpu

if library.unusable_here() is None:
    PATHS = ops.scaled_mm_paths()
    SM90 = torch.cuda.get_device_capability() == (9, 0)
    PATHS = tuple(p for p in PATHS if SM90 or p in ("skinny", "portable"))
else:
    PATHS = ("skinny",)

SHAPES = [
    (1, 8, 16),
    (1, 136, 528),
    (7, 40, 80),
    (16, 1024, 4096),
    (17, 96, 112),
    (33, 200, 1040),
    (64, 512, 2048),
    (65, 264, 144),
    (129, 136, 256),
    (300, 1032, 784),
    (513, 2304, 4096),
]

FEW_ROWS = ("skinny", "sm90_decode")

# Sums of 8-bit floats in the tensor core keep fewer bits than float32.
FP8_UNIT = 2.0**-12


def codes(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).cuda()
    return torch.randn(shape, generator=generator).mul(50).clamp(-448, 448).to(dtype).cuda()


def close(out: torch.Tensor, exact: torch.Tensor, slack: torch.Tensor, where: Any) -> None:
    """Within the output's rounding, and ``slack`` for the sums."""
    unit = 2.0**-8 if out.dtype == torch.bfloat16 else 2.0**-11
    allowed = exact.abs() * unit + slack * (1 + unit) + 1e-30
    if out.dtype == torch.float16:
        allowed = allowed + 2.0**-24
    error = (out.double() - exact).abs()
    assert out.isfinite().all(), where
    assert (error <= allowed).all(), (where, float((error / allowed).max()))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_paths(path: str, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    for M, N, K in SHAPES:
        if path in FEW_ROWS and M > 64:
            continue
        a, b = codes((M, K), dtype, 1), codes((N, K), dtype, 2).t()
        for per_row in (True, False):
            generator = torch.Generator().manual_seed(3)
            sa = torch.rand(M if per_row else 1, generator=generator).add(0.5).mul(1e-3).cuda()
            sb = torch.rand(N if per_row else 1, generator=generator).add(0.5).mul(1e-2).cuda()
            bias = torch.randn(N, generator=generator).to(out_dtype).cuda() if per_row else None
            out = ops.scaled_mm_by(path, a, b, sa, sb, out_dtype, bias=bias)
            scales = sa.double().reshape(-1, 1) * sb.double()
            exact = (a.double() @ b.double()) * scales
            size = (a.double().abs() @ b.double().abs()) * scales
            if bias is not None:
                exact = exact + bias.double()
                size = size + bias.double().abs()
            slack = size * (FP8_UNIT if dtype != torch.int8 else 0) + exact.abs() * 2.0**-21
            if dtype == torch.int8:
                slack = (
                    slack
                    + (0 if bias is None else bias.double().abs() * 2.0**-22)
                    + size * 2.0**-22
                )
            close(out, exact, slack, (path, M, N, K, per_row))


@pytest.mark.parametrize("path", PATHS)
def test_zero_points(path: str) -> None:
    for M, N, K in SHAPES:
        if path in FEW_ROWS and M > 64:
            continue
        a, b = codes((M, K), torch.int8, 1), codes((N, K), torch.int8, 2).t()
        sums = b.int().sum(0, dtype=torch.int32)
        sa, sb = torch.rand(M, device="cuda") * 1e-3, torch.rand(N, device="cuda") * 1e-2
        bias = torch.randn(N, device="cuda").bfloat16()
        azp = torch.randint(-128, 128, (M, 1), dtype=torch.int32, device="cuda")
        cases = [(sums, azp, azp), (sums, azp[:1], azp[:1]), (sums * azp[0], None, azp[:1])]
        for adj, given, meant in cases:
            out = ops.scaled_mm_by(
                path, a, b, sa, sb, torch.bfloat16, azp_adj=adj, azp=given, bias=bias
            )
            whole = (a.double() - meant.double()) @ b.double()
            exact = whole * sa.double()[:, None] * sb.double() + bias.double()
            slack = (exact - bias.double()).abs() * 2.0**-21 + bias.double().abs() * 2.0**-22
            close(out, exact, slack, (path, M, N, K))


@pytest.mark.parametrize("path", ["skinny", "portable"])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_scales_by_block(path: str, out_dtype: torch.dtype) -> None:
    for M, N, K in SHAPES:
        if (path in FEW_ROWS and M > 64) or (K <= 128 and N <= 128):
            continue
        a, b = codes((M, K), torch.float8_e4m3fn, 1), codes((N, K), torch.float8_e4m3fn, 2).t()
        kb, nb = -(-K // 128), -(-N // 128)
        sa = torch.rand(kb, M, device="cuda").add(0.1).mul(1e-3).t()
        sb = torch.rand(nb, kb, device="cuda").add(0.1).mul(1e-3).t()
        out = ops.scaled_mm_by(path, a, b, sa, sb, out_dtype)
        wide_a = a.double() * sa.double().repeat_interleave(128, 1)[:, :K]
        spread = sb.double().repeat_interleave(128, 0)[:K].repeat_interleave(128, 1)[:, :N]
        wide_b = b.double() * spread
        slack = (wide_a.abs() @ wide_b.abs()) * FP8_UNIT
        close(out, wide_a @ wide_b, slack, (path, M, N, K))


def test_full_range_is_exact() -> None:
    for M in (1, 64, 300):
        for sign in (1, -1):
            a = torch.full((M, 65536 // 2), -128, dtype=torch.int8, device="cuda")
            b = torch.full((64, 65536 // 2), -128 * sign if sign > 0 else 127, device="cuda")
            b = b.to(torch.int8).t()
            one = torch.ones(1, device="cuda")
            out = ops.cutlass_scaled_mm(a, b, one, one, torch.bfloat16)
            exact = a[:1].double() @ b.double()
            assert torch.equal(out, exact.to(torch.bfloat16).expand_as(out))


def test_strided_rows_and_outputs() -> None:
    a = codes((40, 512), torch.int8, 1)[:, 128:384]
    b = codes((96, 512), torch.int8, 2)[:, 16:272].t()
    one = torch.ones(1, device="cuda")
    for path in PATHS:
        out = torch.zeros(40, 112, dtype=torch.bfloat16, device="cuda")
        torch.ops.qcore_cuda.scaled_mm_by(out[:, :96], a, b, one, one, None, None, None, path)
        assert torch.equal(out[:, :96], (a.double() @ b.double()).bfloat16())
        assert not out[:, 96:].any()


def test_compiled_captured_streamed() -> None:
    a, b = codes((32, 256), torch.int8, 1), codes((64, 256), torch.int8, 2).t()
    sa, sb = torch.rand(32, 1, device="cuda"), torch.rand(64, device="cuda")

    def run(a: torch.Tensor, sa: torch.Tensor) -> torch.Tensor:
        return ops.cutlass_scaled_mm(a, b, sa, sb, torch.bfloat16)

    expected = run(a, sa)
    assert torch.equal(torch.compile(run, fullgraph=True)(a, sa), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(a, sa)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = run(a, sa)
    stream.synchronize()
    assert torch.equal(other, expected)


def test_empty() -> None:
    b = codes((64, 256), torch.int8, 2).t()
    one = torch.ones(1, device="cuda")
    a = torch.empty(0, 256, dtype=torch.int8, device="cuda")
    assert ops.cutlass_scaled_mm(a, b, one, one, torch.bfloat16).shape == (0, 64)


def refuse(**changes: Any) -> None:
    given: dict[str, Any] = {
        "a": torch.ones(4, 32, device="cuda").to(torch.int8),
        "b": torch.ones(8, 32, device="cuda").to(torch.int8).t(),
        "scale_a": torch.ones(1, device="cuda"),
        "scale_b": torch.ones(1, device="cuda"),
        "out_dtype": torch.bfloat16,
    }
    ops.cutlass_scaled_mm(**{**given, **changes})


def test_errors_name_the_argument() -> None:
    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device="cuda").to(torch.int8)

    with pytest.raises(RuntimeError, match="a is Float"):
        refuse(a=torch.ones(4, 32, device="cuda"))
    with pytest.raises(RuntimeError, match="b has shape"):
        refuse(b=ones(8, 48).t())
    with pytest.raises(RuntimeError, match="b column-major"):
        refuse(b=ones(32, 8))
    with pytest.raises(RuntimeError, match="multiples of 16"):
        refuse(a=ones(4, 24), b=ones(8, 24).t())
    with pytest.raises(RuntimeError, match="a_scales has shape"):
        refuse(scale_a=torch.ones(3, device="cuda"))
    with pytest.raises(RuntimeError, match="bias is Float"):
        refuse(bias=torch.ones(8, device="cuda"))
    with pytest.raises(RuntimeError, match="out is Float"):
        refuse(out_dtype=torch.float32)
