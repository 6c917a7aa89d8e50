"""Layers in one call: to the bit what quantizing and multiplying apart from each other gives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from qcore.numerics.tensor_core import FP8_SUM_UNIT
from qcore_cuda import ops
from qcore_cuda.kernels.padding import pad_to

pytestmark = pytest.mark.gpu

E4M3 = torch.float8_e4m3fn
SHAPES = [
    (0, 16, 32),
    (1, 16, 32),
    (5, 10, 40),
    (33, 136, 528),
    (70, 130, 200),
    (300, 264, 1000),
    (1030, 1032, 1184),  # of scales by block, rows and columns of no multiple of 4
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def weight_of(N: int, K: int, dtype: torch.dtype) -> torch.Tensor:
    """[N', K'], zeros around the layer's."""
    weight = randn(N, K, seed=1).mul(20).clamp(-127, 127)
    return pad_to(pad_to(weight, 1, 16), 0, 8).to(dtype)


def views(x: torch.Tensor) -> list[torch.Tensor]:
    wide = torch.zeros(x.shape[0], x.shape[1] + 5, dtype=x.dtype, device=x.device)
    wide[:, 3:-2] = x
    return [x, x.reshape(1, *x.shape), wide[:, 3:-2], x.t().contiguous().t()]


def same(out: torch.Tensor, expected: torch.Tensor, x: torch.Tensor) -> None:
    assert out.shape == (*x.shape[:-1], expected.shape[-1])
    assert torch.equal(out.reshape(expected.shape), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["dynamic", "static", "dynamic azp", "static azp"])
def test_int8(shape: tuple[int, int, int], out_dtype: torch.dtype, mode: str) -> None:
    M, N, K = shape
    weight = weight_of(N, K, torch.int8)
    scales = torch.rand(weight.shape[0], device="cuda")
    adj = weight.sum(1, dtype=torch.int32) if "azp" in mode else None
    static = torch.tensor([0.02], device="cuda") if "static" in mode else None
    zero = torch.tensor([-7], dtype=torch.int32, device="cuda") if mode == "static azp" else None
    for dtype in (torch.float32, torch.bfloat16):
        x = randn(M, K).to(dtype)
        bias = randn(N, seed=2).to(out_dtype)
        codes, scale, azp = ops.scaled_int8_quant(x, static, zero, symmetric=adj is None)
        codes = pad_to(codes, 1, 16)
        wide_bias = pad_to(bias, 0, 8)
        if adj is None:
            expected = ops.cutlass_scaled_mm(codes, weight.t(), scale, scales, out_dtype, wide_bias)
        else:
            expected = ops.cutlass_scaled_mm_azp(
                codes, weight.t(), scale, scales, out_dtype, adj, azp, wide_bias
            )
        for view in views(x):
            out = ops.int8_linear(view, weight, scales, bias, static, zero, adj, N, out_dtype)
            same(out, expected[:, :N], view)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["token", "bounded", "tensor", "static", "quantized"])
def test_fp8(shape: tuple[int, int, int], out_dtype: torch.dtype, mode: str) -> None:
    M, N, K = shape
    weight = weight_of(N, K, torch.float32).to(E4M3)
    scales = torch.rand(weight.shape[0], device="cuda")
    static = torch.tensor([0.02], device="cuda") if mode == "static" else None
    bound = torch.tensor([1.5], device="cuda") if mode == "bounded" else None
    token = mode in ("token", "bounded", "quantized")
    x = randn(M, K).bfloat16()
    codes, scale = ops.scaled_fp8_quant(x, static, scale_ub=bound, use_per_token_if_dynamic=token)
    wide = pad_to(codes.view(torch.uint8), 1, 16).view(E4M3)
    expected = ops.cutlass_scaled_mm(wide, weight.t(), scale, scales, out_dtype)
    for view in [codes] if mode == "quantized" else views(x):
        given = scale if mode == "quantized" else static
        for stored in (weight, weight.view(torch.uint8)):
            out = ops.fp8_linear(view, stored, scales, None, given, bound, token, N, out_dtype)
            same(out, expected[:, :N], view)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_fp8_blocks(shape: tuple[int, int, int], out_dtype: torch.dtype) -> None:
    M, N, K = shape
    weight = weight_of(N, K, torch.float32)
    rows, kb = -(-weight.shape[0] // 128), -(-K // 128)
    scales = torch.rand(rows, kb, device="cuda")
    x = randn(M, K).bfloat16()
    bias = randn(N, seed=2).to(out_dtype)
    codes, scale = ops.per_token_group_fp8_quant(x, 128, 1e-30)
    wide = codes.double() * scale.double().repeat_interleave(128, 1)[:, :K]
    spread = scales.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    true_weight = weight.to(E4M3).double()[:N, :K] * spread
    exact = wide @ true_weight.t() + bias.double()
    size = wide.abs() @ true_weight.abs().t() + bias.double().abs()
    padded = pad_to(scales, 1, 4, torch.nan)  # never looked at
    for view, stored in product(views(x), (scales, padded)):
        out = ops.fp8_block_linear(view, weight.to(E4M3), stored, bias, N, out_dtype)
        assert out.shape == (*view.shape[:-1], N)
        unit = torch.finfo(out_dtype).eps / 2
        # 128 products in the tensor core, then float32 sums.
        slack = size * (128 * FP8_SUM_UNIT + (kb + 4) * 2.0**-24)
        error = (out.reshape(exact.shape).double() - exact).abs()
        assert (error <= exact.abs() * unit + slack * (1 + unit) + 2.0**-24).all()


@pytest.mark.parametrize("M", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("mode", ["int8", "int8 azp", "fp8", "fp8 bounded"])
def test_few_rows_at_once(M: int, mode: str) -> None:
    """Quantized by the kernel that multiplies: the codes, scales and sums of two kernels."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("a kernel for sm_90")
    for N, K in ((264, 1000), (4096, 1024), (8448, 528), (17960, 272), (128, 14336), (128, 32768)):
        x = randn(M, K).bfloat16()
        x[M // 2] *= 100
        bias = randn(N, seed=2).bfloat16()
        codes: torch.Tensor
        azp = adj = bound = None
        if mode.startswith("int8"):
            weight = weight_of(N, K, torch.int8)
            adj = weight.sum(1, dtype=torch.int32) if "azp" in mode else None
            codes, scale, azp = ops.scaled_int8_quant(x, None, None, symmetric=adj is None)
            wide = pad_to(codes, 1, 16)
        else:
            weight = weight_of(N, K, torch.float32).to(E4M3)
            bound = torch.tensor([1.5], device="cuda") if "bounded" in mode else None
            codes, scale = ops.scaled_fp8_quant(
                x, None, scale_ub=bound, use_per_token_if_dynamic=True
            )
            wide = pad_to(codes.view(torch.uint8), 1, 16).view(E4M3)
        scales = torch.rand(weight.shape[0], device="cuda")
        rest = {"azp_adj": adj, "azp": azp if adj is not None else None, "bias": bias}
        expected = ops.scaled_mm_by(
            "sm90_columns", wide, weight.t(), scale, scales, torch.bfloat16, **rest
        )
        if mode.startswith("int8"):
            out = ops.int8_linear(x, weight, scales, bias, None, None, adj, N, torch.bfloat16)
        else:
            out = ops.fp8_linear(x, weight, scales, bias, None, bound, True, N, torch.bfloat16)
        if mode.startswith("fp8") and not torch.equal(out, expected):
            # Where two kernels are faster, another may multiply, whose sums are rounded elsewhere.
            expected = ops.cutlass_scaled_mm(wide, weight.t(), scale, scales, torch.bfloat16, bias)
        assert torch.equal(out, expected), (N, K)


def layer_calls() -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """Each op, its out variant, and what comes between x and ``out_features, out_dtype``."""
    space = torch.ops.qcore_cuda
    codes, one = weight_of(130, 96, torch.int8), torch.ones(1, device="cuda")
    bytes_ = weight_of(130, 96, torch.float32).to(E4M3).view(torch.uint8)
    blocks, bias = torch.ones(2, 1, device="cuda"), randn(130).bfloat16()
    adj = codes.sum(1, dtype=torch.int32)
    return [
        (space.int8_linear.default, space.int8_linear.out, (codes, one, bias, None, None, adj)),
        (space.fp8_linear.default, space.fp8_linear.out, (bytes_, one, bias, None, None, True)),
        (space.fp8_linear.default, space.fp8_linear.out, (bytes_, one, None, None, None, False)),
        (space.fp8_block_linear.default, space.fp8_block_linear.out, (bytes_, blocks, bias)),
    ]


@pytest.mark.parametrize("which", range(4))
def test_well_formed_compiled_captured_streamed(which: int) -> None:
    op, into, args = layer_calls()[which]
    x = randn(20, 96).bfloat16()
    torch.library.opcheck(
        op, (x, *args, 130, torch.bfloat16), test_utils=("test_schema", "test_faketensor")
    )

    def run(x: torch.Tensor) -> torch.Tensor:
        return op(x, *args, 130, torch.bfloat16)

    expected = run(x)
    out = torch.zeros(20, 130, dtype=torch.bfloat16, device="cuda")
    into(x, *args, out=out)
    assert torch.equal(out, expected)
    assert torch.equal(torch.compile(run, fullgraph=True)(x), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = run(x)
    stream.synchronize()
    assert torch.equal(other, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_on_another_device() -> None:
    x = randn(20, 96).bfloat16()
    for op, _, args in layer_calls():
        expected = op(x, *args, 130, torch.bfloat16)
        there = [a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in args]
        assert torch.equal(op(x.to("cuda:1"), *there, 130, torch.bfloat16).cuda(0), expected)


def int8_call(**changes: Any) -> Callable[[], torch.Tensor]:
    given: dict[str, Any] = {
        "x": torch.ones(4, 32, device="cuda"),
        "weight": torch.ones(8, 32, device="cuda").to(torch.int8),
        "weight_scale": torch.ones(1, device="cuda"),
        "bias": None,
        "input_scale": None,
        "input_azp": None,
        "azp_adj": None,
        "out_features": 8,
        "out_dtype": torch.bfloat16,
    }
    return lambda: ops.int8_linear(**{**given, **changes})


def test_errors_name_the_argument() -> None:
    for changes, words in [
        ({"x": torch.ones(4, 32)}, "x is not on a CUDA device"),
        ({"x": torch.ones(4, 32, device="cuda").int()}, "x is Int"),
        ({"x": torch.ones(4, 64, device="cuda")}, "weight has shape"),
        ({"weight": torch.ones(8, 32, device="cuda")}, "weight is Float"),
        ({"weight_scale": torch.ones(3, device="cuda")}, "weight_scale has shape"),
        ({"bias": torch.ones(8, device="cuda")}, "bias is Float"),
        ({"input_azp": torch.ones(1, device="cuda").int()}, "zero point goes with a scale"),
        ({"out_features": 9}, "weight has shape"),
        ({"out_dtype": torch.float32}, "out is Float"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            int8_call(**changes)()
