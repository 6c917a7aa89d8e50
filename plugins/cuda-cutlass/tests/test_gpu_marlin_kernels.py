"""Generated kernels on a GPU, against float64: every scheme, rows at the edges of tiles, layers."""

from __future__ import annotations

import pytest
import torch
from marlin_oracle import Problem, assert_marlin, bias_order, inputs, problem
from qcore.facts.scalar_type import ScalarType, scalar_types
from qcore_cuda import library, ops
from qcore_cuda.marlin import kernels
from qcore_cuda.marlin.instances import Scheme, schemes

pytestmark = pytest.mark.gpu

Tensor = torch.Tensor

TYPES = {
    "u4": ScalarType.uint(4),
    "u4b8": ScalarType.uint(4, 8),
    "u8": ScalarType.uint(8),
    "u8b128": ScalarType.uint(8, 128),
    "fe4m3fn": scalar_types.float8_e4m3fn,
    "fe2m1f": scalar_types.float4_e2m1f,
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SCHEMES = schemes((90,))


def cuda(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.cuda()


def linear(
    x: Tensor, p: Problem, scheme: Scheme, a_scales: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    library.load()
    workspace = torch.zeros(1024, dtype=torch.int32, device="cuda")
    out = torch.ops.qcore_cuda.marlin_linear(
        x.cuda(), p.words.cuda(), p.scales.cuda(), cuda(p.zeros), cuda(p.g_idx), None,
        cuda(a_scales), cuda(p.global_scale), cuda(bias), workspace, TYPES[scheme.b_type].id,
        p.weight.shape[1], DTYPES[scheme.c_type],
    )  # fmt: skip
    assert not workspace.any()
    return out.cpu()


@pytest.mark.parametrize(
    "scheme", SCHEMES, ids=lambda s: f"{s.config}-{s.a_type}-{s.c_type}-{s.group_blocks}"
)
def test_schemes(scheme: Scheme) -> None:
    kernels.prepare(scheme, 10 * torch.cuda.get_device_capability()[0])
    K, N = 640 if scheme.group_blocks != 8 else 896, 320
    p = problem(scheme, K, N)
    bias = torch.randn(N, generator=torch.Generator().manual_seed(5)).to(DTYPES[scheme.c_type])
    for M in (0, 1, 15, 16, 17, 33, 64, 257):
        x, value, a_scales = inputs(scheme, M, K)
        out = linear(x, p, scheme, a_scales)
        assert_marlin(out, value, p, scheme)
        if M == 17:
            assert_marlin(linear(x, p, scheme, a_scales, bias), value, p, scheme, bias)
        if scheme.group_blocks != 0 and M:
            same = ops.marlin_gemm(
                x.cuda(), None, p.words.cuda(), bias_order(bias).cuda(), p.scales.cuda(),
                cuda(a_scales), cuda(p.global_scale), cuda(p.zeros),
                torch.zeros(1024, dtype=torch.int32, device="cuda"), TYPES[scheme.b_type].id,
                M, N, K, is_zp_float=scheme.is_zp_float,
            )  # fmt: skip
            assert_marlin(same.cpu().to(out.dtype), value, p, scheme, bias)


@pytest.mark.parametrize("M", [1, 16, 48, 256])
def test_large_and_repeatable(M: int) -> None:
    """Many blocks share tiles; the result is the same each time, and on another stream."""
    scheme = next(s for s in SCHEMES if s.config == "gptq-int4" and s.group_blocks == 8)
    K, N = 4096, 4096
    p = problem(scheme, K, N)
    x, value, _ = inputs(scheme, M, K)
    first = linear(x, p, scheme, None)
    assert_marlin(first, value, p, scheme)
    for _ in range(20):
        assert torch.equal(linear(x, p, scheme, None), first)


def test_loaded_kernels(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel compiled at run time gives what the one of the library gives, and is kept."""
    from qcore_cuda.marlin import cache
    from qcore_cuda.marlin.compilers import find_compiler
    from qcore_cuda.marlin.instances import THREAD_CONFIGS, tiles_of

    if find_compiler() is None:
        pytest.skip("no compiler of kernels here")
    monkeypatch.setenv("QCORE_CUDA_CACHE", str(tmp_path))
    scheme = next(s for s in SCHEMES if s.config == "gptq-int4" and s.group_blocks == 4)
    wanted = [i for i in tiles_of(scheme) if THREAD_CONFIGS[i.thread_config] == (128, 64, 128)]
    capability = torch.cuda.get_device_capability()
    path = cache.compiled(wanted, capability[0] * 10 + capability[1])
    assert path == cache.compiled(wanted, capability[0] * 10 + capability[1])
    library.load()
    space = torch.ops.qcore_cuda
    for instance in wanted:
        space.marlin_load_kernel(scheme.key, instance.slot, str(path), instance.name)
        assert space.marlin_has_kernel(scheme.key, instance.slot)
    p = problem(scheme, 256, 64)  # 64 outputs: the narrow tile is wanted
    x, value, _ = inputs(scheme, 17, 256)
    assert_marlin(linear(x, p, scheme, None), value, p, scheme)


def test_graph() -> None:
    """A call can be captured and replayed."""
    scheme = next(s for s in SCHEMES if s.config == "gptq-int4" and s.group_blocks == 8)
    p = problem(scheme, 512, 256)
    x, value, _ = inputs(scheme, 5, 512)
    words, scales, given = p.words.cuda(), p.scales.cuda(), x.cuda()
    workspace = torch.zeros(1024, dtype=torch.int32, device="cuda")

    def call() -> Tensor:
        return torch.ops.qcore_cuda.marlin_linear(
            given, words, scales, None, None, None, None, None, None, workspace,
            TYPES["u4b8"].id, 256, DTYPES[scheme.c_type],
        )  # fmt: skip

    linear(x, p, scheme, None)
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert_marlin(out.cpu(), value, p, scheme)


CLASSES = {
    "MarlinDynamicLinearKernel": "marlin_dynamic",
    "MarlinLinearKernel": "marlin",
    "MarlinFP8ScaledMMLinearKernel": "marlin_floats",
    "MarlinNvFp4LinearKernel": "marlin_floats",
    "MarlinMxFp4LinearKernel": "marlin_floats",
    "MarlinMxfp8LinearKernel": "marlin_floats",
}


@pytest.mark.parametrize("name", CLASSES)
def test_conformance(name: str) -> None:
    from importlib import import_module

    from qcore.testing import check_kernel
    from qcore_cuda.plugin import qcore_kernels

    spec = next(spec for spec in qcore_kernels() if spec.name == name)
    module = import_module(f"qcore_cuda.kernels.{CLASSES[name]}")
    check_kernel(getattr(module, name), device="cuda", spec=spec)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, -1])
def test_parts_by_rows(group_size: int, zero_points: bool) -> None:
    """On both sides of the limit, with a bias, padding and strided input; against float64."""
    from qcore.kernels import MPLinearLayerConfig, process_weights
    from qcore.numerics.dequantize import dequantize_weight
    from qcore.testing import make_layer, random_tensors
    from qcore_cuda.kernels.marlin_dynamic import MarlinDynamicLinearKernel as Dynamic

    shape = (320, 200)
    kind = scalar_types.uint4 if zero_points else scalar_types.uint4b8
    config = MPLinearLayerConfig(shape, shape, kind, torch.bfloat16, group_size, zero_points)
    tensors = random_tensors(config)
    weight = dequantize_weight(config, tensors, torch.float64)
    layer = make_layer(config, tensors, device="cuda")
    kernel = Dynamic.from_config(config)
    process_weights(kernel, layer)
    (limit, _), _ = Dynamic.parts
    assert limit is not None
    bias = torch.randn(200).to(torch.bfloat16)
    for M in (0, 1, limit, limit + 1, 2 * limit):
        strided = torch.randn(M, 330).to(torch.bfloat16).cuda()[:, 3:323]
        x = strided.cpu()
        out = kernel.apply_weights(layer, strided, bias.cuda()).cpu()
        exact = x.double() @ weight.t() + bias.double()
        room = x.double().abs() @ weight.abs().t() + bias.double().abs()
        assert ((out.double() - exact).abs() <= 2.0**-8 * room).all(), M
