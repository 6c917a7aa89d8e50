"""Every path of the scaled products against float64.

8-bit floats are another matter: Hopper's tensor cores keep 13 bits below the largest number of a
sum, and lose up to a percent of the result's magnitude at K = 4096. Those sums are computed here as
the tensor cores do it (`tensor_core`), and the rest must be as exact as float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import tensor_core
import torch
from at_once import assert_same_at_once
from qcore_cuda import library, ops
from shared_tiles import places, share

pytestmark = pytest.mark.gpu

if library.unusable_here() is None:
    PATHS = ops.scaled_mm_paths()
    SM90 = torch.cuda.get_device_capability() == (9, 0)
    PATHS = tuple(p for p in PATHS if SM90 or p in ("skinny", "portable"))
else:
    PATHS = ("skinny",)

INT8_PATHS = tuple(p for p in PATHS if not p.endswith("_promoted"))

SHAPES = [
    (1, 8, 16),
    (1, 136, 528),
    (7, 40, 80),
    (16, 1024, 4096),
    (17, 96, 112),
    (33, 200, 1040),
    (64, 512, 2048),
    (5, 8448, 528),  # blocks of 64 columns, of 72 and more, of 136 and more
    (20, 9000, 400),
    (40, 17960, 272),
    (3, 34000, 144),  # two rounds of blocks
    (65, 264, 144),
    (8, 2056, 1168),  # with scales by block, pairs of blocks share K: an odd number of steps
    (30, 4000, 2048),
    (96, 2568, 4096),  # tiles in four parts
    (70, 5000, 1424),  # in parts that are not the same
    (129, 136, 256),
    (300, 1032, 784),
    (513, 2304, 4096),
]

FEW_ROWS = ("skinny", "sm90_columns")
MOST_ROWS = {"skinny": 64, "sm90_columns": 32}  # by block
LONG_ROWS = (130, 136, 65024)  # as many scales of b as the tiles of 128 rows take
BLOCK_PATHS = tuple(p for p in PATHS if not p.startswith(("t", "sm90_256")))


def regions(
    path: str, M: int, N: int, K: int, processors: int
) -> Iterator[tuple[slice, slice, list[torch.Tensor]]]:
    """Rows and columns of the result, and what of K is summed up one after another there."""
    own = re.fullmatch(r"sm90_(\d+)_shared", path)
    if not own:
        yield slice(None), slice(None), tensor_core.chains(path, K, N, processors)
        return
    rows, blocks = int(own[1]), 1 if own[1] == "64" else 2
    grid = -(-M // rows), -(-N // (128 * blocks)), -(-K // 128)
    clusters = processors // blocks
    division = share(grid[0] * grid[1], clusters, grid[2])
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for places_of_one in places(*grid, clusters, division, blocks):
        for at in places_of_one:
            steps = torch.arange(128 * at.first, min(128 * at.last, K))
            # Of 64 rows, two warpgroups take every other step.
            own_path = path.removesuffix("_shared")
            parts = tensor_core.chains(own_path, len(steps), N, processors)
            found.setdefault((at.m, at.pair), []).extend(steps[part] for part in parts)
    for (m, pair), parts in found.items():
        columns = slice(128 * blocks * pair, 128 * blocks * (pair + 1))
        yield slice(rows * m, rows * (m + 1)), columns, parts


def fp8_sums(path: str, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``a @ b`` as the path's tensor core instructions sum it up, and how far from it is right."""
    K = a.shape[1]
    exact = a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()
    if not path.startswith(("skinny", "portable")):
        # wgmma. Whether a sum is cut off once more before it is read is not published.
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        found, slack = torch.zeros(2, *exact.shape, dtype=torch.float64, device=a.device)
        for rows, columns, parts in regions(path, a.shape[0], b.shape[1], K, processors):
            here = tensor_core.chain_sums(a[rows], b[:, columns], parts)
            found[rows, columns] = here.sum(0)
            slack[rows, columns] = here.abs().sum(0) * 2.0**-tensor_core.BITS
            slack[rows, columns] += size[rows, columns] * (len(parts) - 1) * 2.0**-24
        return found, slack
    if SM90:
        # mma.sync of 8-bit floats is one of float16 there: 16 products and an accumulator, each
        # cut off at no less than 23 bits, and so is the sum.
        return exact, size * K * 18 / 16 * 2.0**-23
    return exact, size * K * 34 / 32 * 2.0**-tensor_core.BITS


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
    if dtype == torch.int8 and path not in INT8_PATHS:
        pytest.skip("compiled for FP8 alone")
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
            sums, slack = a.double() @ b.double(), 0
            if dtype != torch.int8:
                sums, slack = fp8_sums(path, a, b)
            exact = sums * scales
            # Three roundings to float32: two scales and the bias; and that of the integer sum.
            slack = slack * scales + exact.abs() * 2.0**-22
            if bias is not None:
                exact = exact + bias.double()
                slack = slack + bias.double().abs() * 2.0**-23
            close(out, exact, slack, (path, M, N, K, per_row))


@pytest.mark.parametrize("path", INT8_PATHS)
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


@pytest.mark.parametrize("path", BLOCK_PATHS)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_scales_by_block(path: str, out_dtype: torch.dtype) -> None:
    for M, N, K in (*SHAPES, LONG_ROWS):
        if (path in FEW_ROWS and MOST_ROWS[path] < M) or (K <= 128 and N <= 128):
            continue
        a, b = codes((M, K), torch.float8_e4m3fn, 1), codes((N, K), torch.float8_e4m3fn, 2).t()
        kb, nb = -(-K // 128), -(-N // 128)
        sa = torch.rand(kb, M, device="cuda").add(0.1).mul(1e-3).t()
        sb = torch.rand(nb, kb, device="cuda").add(0.1).mul(1e-3).t()
        bias = torch.randn(N, device="cuda").to(out_dtype) if K % 32 else None
        # Rows in multiples of 4, side by side, are what the copy engine takes as they lie.
        layouts = product((sa, sa.contiguous()), (sb, sb.contiguous()))
        outs = [ops.scaled_mm_by(path, a, b, *scales, out_dtype, bias=bias) for scales in layouts]
        exact, slack = torch.zeros(2, M, N, dtype=torch.float64, device="cuda")
        columns = torch.arange(N, device="cuda") // 128
        for k in range(kb):
            part = slice(128 * k, 128 * (k + 1))
            sums, off = fp8_sums(path + "_promoted", a[:, part], b[part])
            scales = sa[:, k : k + 1].double() * sb[k, columns].double()
            exact += sums * scales
            # The scale rounds, and so does each addition.
            slack += off * scales + (sums * scales).abs() * (kb + 3) * 2.0**-24
        if bias is not None:
            exact += bias.double()
            slack += exact.abs() * 2.0**-23
        assert all(torch.equal(out, outs[0]) for out in outs), (path, M, N, K)
        close(outs[0], exact, slack, (path, M, N, K))


@pytest.mark.skipif("sm90_128" not in PATHS, reason="a path of SM90")
def test_more_scales_than_a_row_has() -> None:
    K = LONG_ROWS[2] + 128
    a, b = codes((9, K), torch.float8_e4m3fn, 1), codes((64, K), torch.float8_e4m3fn, 2).t()
    scales = torch.ones(9, K // 128, device="cuda"), torch.ones(K // 128, 1, device="cuda")
    for path in ("sm90_128", "sm90_128_shared"):
        with pytest.raises(RuntimeError, match="takes K up to 65024; it is 65152"):
            ops.scaled_mm_by(path, a, b, *scales, torch.bfloat16)
    out, exact = ops.cutlass_scaled_mm(a, b, *scales, torch.bfloat16), a.double() @ b.double()
    assert (out.double() - exact).norm() < 0.005 * exact.norm()


@pytest.mark.parametrize("path", [p for p in PATHS if p.endswith("_shared")])
@pytest.mark.parametrize("kind", ["fp8", "int8", "fp8 block"])
def test_shared_tiles_on_streams_and_in_graphs(path: str, kind: str) -> None:
    """Flags by which blocks wait for each other are those of one launch only."""
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    b = codes((5120, 2048), dtype, 2).t()
    if kind == "fp8 block" and path not in BLOCK_PATHS:
        pytest.skip("for scales by row alone")
    calls = []
    for M in (60, 100, 500):
        sizes = ((M, 16), (16, 40)) if kind == "fp8 block" else ((1,), (1,))
        scales = [torch.ones(size, device="cuda") for size in sizes]
        a = codes((M, 2048), dtype, M)
        calls.append(partial(ops.scaled_mm_by, path, a, b, *scales, torch.bfloat16))
    assert_same_at_once(calls, [call() for call in calls])


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
    for path in INT8_PATHS:
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
