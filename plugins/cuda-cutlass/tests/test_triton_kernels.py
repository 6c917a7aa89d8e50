"""Triton's kernels: with a GPU on it, elsewhere in Triton's interpreter on CPU tensors.

References are written here, in float64, from codes and scales that the tests make up; what is
allowed is derived from the roundings.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from qcore.facts.quant_key import (
    kFp8Dynamic128Sym,
    kFp8Static128BlockSym,
    kMxfp4Dynamic,
    kMxfp8Dynamic,
    kNvfp4Dynamic,
    kNvfp4DynamicToken,
)
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import process_weights
from qcore.layers import (
    Fp8BlockScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.testing import (
    Arithmetic,
    Subject,
    check_batch_invariance,
    check_compile,
    check_contract,
    check_kernel,
    check_nan_propagation,
    check_numerics,
    check_opcheck,
    check_packing,
    make_layer,
)
from qcore_cuda import plugin

GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if GPU else []
DEVICE = "cuda" if GPU else "cpu"
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
pytest.importorskip("triton")
if not GPU:
    source = inspect.getsource(import_module("triton.runtime.interpreter"))
    numpy = import_module("numpy")
    if "int(self.handle.data)" in source and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        reason = "the interpreter of this triton needs numpy below 2.4"
        pytest.skip(reason, allow_module_level=True)

F32, F16, BF16, E4M3 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
SPECS = {s.name: s for s in plugin.qcore_kernels() if s.backend == "triton"}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6.0]).double()


def class_of(name: str) -> Any:
    return getattr(import_module(SPECS[name].entry.partition(":")[0]), name)


def subject(name: str) -> Subject:
    kernel = class_of(name)
    spec = SPECS[name]
    if not GPU:
        spec = replace(spec, platforms=("cpu",), min_capability=None)
    return Subject(kernel, DEVICE, spec, Arithmetic.of(kernel))


def run(
    name: str,
    config: MMLinearLayerConfig,
    tensors: dict[str, torch.Tensor],
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The layer's output, float64 on the CPU."""
    kernel = class_of(name).from_config(config)
    layer = make_layer(config, tensors, device=DEVICE)
    process_weights(kernel, layer)
    moved = bias.to(DEVICE) if bias is not None else None
    out: torch.Tensor = kernel.apply_weights(layer, x.to(DEVICE), moved)
    assert out.dtype == (getattr(config, "out_dtype", None) or x.dtype)
    return out.double().cpu()


def close(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    weight_unit: float = 0.0,
    sum_unit: float = 2.0**-24,
) -> None:
    """Within what rounded weights, float32 sums and the output's rounding can explain."""
    expected = x.double() @ weight.t()
    size = x.double().abs() @ weight.abs().t()
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    terms = x.shape[1] + 12
    allowed = size * (weight_unit + 1.01 * terms * sum_unit)
    allowed = allowed + torch.finfo(dtype).eps / 2 * (expected.abs() + allowed) + 2.0**-24
    assert out.shape == expected.shape
    worst = ((out - expected).abs() / allowed).max() if out.numel() else 0
    assert worst <= 1, f"{float(worst):.2f} of what is allowed"


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def integers(random: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=random)


# -- packed integers -----------------------------------------------------------------------------


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes in int32, lowest bits first, along the last dimension."""
    per = 32 // bits
    wide = torch.zeros(*codes.shape[:-1], -(-codes.shape[-1] // per) * per, dtype=torch.int64)
    wide[..., : codes.shape[-1]] = codes
    places = 2 ** (bits * torch.arange(per))
    total = (wide.reshape(*codes.shape[:-1], -1, per) * places).sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


MP = [
    # N, K, bits, group, zero points, dtype, scales' dtype, M
    (32, 128, 4, 32, False, BF16, BF16, 1),
    (19, 192, 4, 64, True, F16, F16, 5),
    (40, 256, 4, 128, True, BF16, F32, 33),
    (16, 77, 4, -1, False, F16, F32, 2),
    (130, 96, 4, 7, True, BF16, BF16, 3),
    (24, 200, 8, 128, False, F16, F16, 70),
    (24, 64, 8, 32, True, BF16, BF16, 1),
    (1, 1, 4, -1, True, F16, F16, 1),
    (16, 1100, 4, 128, False, BF16, BF16, 4),  # parts of K
]


@pytest.mark.parametrize(("N", "K", "bits", "group", "zeros", "dtype", "scales", "M"), MP)
def test_packed_integers(
    N: int,
    K: int,
    bits: int,
    group: int,
    zeros: bool,
    dtype: torch.dtype,
    scales: torch.dtype,
    M: int,
    random: torch.Generator,
) -> None:
    kinds = {
        (4, False): scalar_types.uint4b8,
        (4, True): scalar_types.uint4,
        (8, False): scalar_types.uint8b128,
        (8, True): scalar_types.uint8,
    }
    config = MPLinearLayerConfig((K, N), (K, N), kinds[bits, zeros], dtype, group, zeros)
    codes = integers(random, 0, 2**bits, N, K)
    size = K if group == -1 else group
    groups = -(-K // size)
    scale = (torch.rand(N, groups, generator=random) + 0.5).to(scales)
    zero = integers(random, 0, 2**bits, N, groups)
    if not zeros:
        zero = torch.full_like(zero, 2 ** (bits - 1))
    tensors = {"weight_packed": words(codes, bits), "weight_scale": scale}
    if zeros:
        tensors["weight_zero_point"] = words(zero.t(), bits).t().contiguous()
    of = torch.arange(K) // size
    weight = (codes - zero[:, of]).double() * scale.double()[:, of]
    x = torch.randn(M, K, generator=random).to(dtype)
    bias = torch.randn(N, generator=random).to(dtype) if M % 2 else None
    out = run("TritonW4A16LinearKernel", config, tensors, x, bias)
    close(out, x, weight, bias, dtype, weight_unit=torch.finfo(dtype).eps / 2)


# -- int8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 32, 64), (5, 19, 77), (40, 130, 256), (70, 16, 300)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_int8(
    shape: tuple[int, int, int], symmetric: bool, static: bool, random: torch.Generator
) -> None:
    """Inputs that are codes times a power of two, so that quantizing them loses nothing."""
    M, N, K = shape
    config = Int8ScaledMMLinearLayerConfig(static, True, symmetric, False, (N, K), F32, F32)
    weight = integers(random, -128, 128, N, K).to(torch.int8)
    scale = torch.rand(N, 1, generator=random) + 0.5
    tensors = {"weight": weight, "weight_scale": scale}
    codes = integers(random, -127, 128, M, K)
    codes[:, 0] = 127
    zero = 0
    if not symmetric:
        zero = -7
        codes[:, 1:2], codes[:, 0] = -128, 127
    if static:
        tensors["input_scale"] = torch.tensor([0.25])
        if not symmetric:
            tensors["input_zero_point"] = torch.tensor([zero], dtype=torch.int32)
    x = ((codes - zero) * 0.25).float()
    out = run("TritonInt8ScaledMMLinearKernel", config, tensors, x)
    close(out, x, weight.double() * scale.double(), None, F32, sum_unit=2.0**-22 / K)


# -- block FP8 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 128, 256), (5, 19, 200), (40, 300, 128)])
def test_fp8_blocks(shape: tuple[int, int, int], random: torch.Generator) -> None:
    M, N, K = shape
    config = Fp8BlockScaledMMLinearLayerConfig(
        kFp8Static128BlockSym, kFp8Dynamic128Sym, (N, K), F32, F32
    )
    weight = torch.randn(N, K, generator=random).to(E4M3)
    scale = torch.rand(-(-N // 128), -(-K // 128), generator=random) + 0.5
    rows, columns = torch.arange(N) // 128, torch.arange(K) // 128
    dense = weight.double() * scale.double()[rows][:, columns]
    # Codes with 448 in each group: a scale of one quarter, and nothing is rounded.
    codes = torch.randn(M, K, generator=random).mul(20).to(E4M3).float()
    codes[:, ::128] = 448.0
    x = codes * 0.25
    out = run(
        "TritonFp8BlockScaledMMKernel", config, {"weight": weight, "weight_scale_inv": scale}, x
    )
    unit = class_of("TritonFp8BlockScaledMMKernel").accumulation if GPU else 2.0**-24
    close(out, x, dense, None, F32, sum_unit=unit)


# -- block formats -------------------------------------------------------------------------------


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def of_bytes(codes: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.uint8).view(E4M3).double()


@pytest.mark.parametrize(("N", "K", "M"), [(16, 64, 1), (19, 96, 5), (130, 160, 33)])
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4", "mxfp8"])
def test_weights_only(
    kind: str, dtype: torch.dtype, N: int, K: int, M: int, random: torch.Generator
) -> None:
    """Every code, and scales over the range of float16 and beyond it: no weight is rounded."""
    block = 16 if kind == "nvfp4" else 32
    codes = integers(random, 0, 16, N, K)
    four = E2M1[codes]
    if kind == "nvfp4":
        scales = integers(random, 0, 127, N, K // block)
        outer = torch.tensor([0.0037])
        weight = four * of_bytes(scales).repeat_interleave(block, 1) * outer.double()
        tensors = {
            "weight": nibbles(codes),
            "weight_scale": scales.to(torch.uint8).view(E4M3),
            "weight_global_scale": outer,
        }
        config: Any = NvFp4LinearLayerConfig((N, K), None, dtype, F32)
    else:
        # Of an output the scales lie within 2**10, outputs' anywhere.
        scales = integers(random, 20, 200, N, 1) + integers(random, 0, 11, N, K // block)
        powers = torch.ldexp(torch.ones(N, K // block).double(), scales - 127)
        small = {"weight_scale": scales.to(torch.uint8)}
        if kind == "mxfp4":
            config = MxFp4LinearLayerConfig((N, K), None, dtype, F32)
            tensors = {"weight": nibbles(codes), **small}
            weight = four * powers.repeat_interleave(block, 1)
        else:
            config = Mxfp8LinearLayerConfig((N, K), None, dtype, F32)
            eight = integers(random, 0, 256, N, K)
            eight = torch.where((eight & 127) == 127, 0, eight)
            tensors = {"weight": eight.to(torch.uint8).view(E4M3), **small}
            weight = of_bytes(eight) * powers.repeat_interleave(block, 1)
    x = torch.randn(M, K, generator=random).to(dtype)
    name = {"nvfp4": "NvFp4", "mxfp4": "MxFp4", "mxfp8": "Mxfp8"}[kind]
    out = run(f"Triton{name}LinearKernel", config, tensors, x)
    # Outputs have magnitudes of their own, so compare each with its own.
    size = weight.abs().amax(1)
    close(out / size, x, weight / size[:, None], None, F32)


def test_a_scale_that_is_no_number_shows(random: torch.Generator) -> None:
    N, K = 16, 64
    config = MxFp4LinearLayerConfig((N, K), None, BF16)
    scales = torch.full((N, 2), 127, dtype=torch.uint8)
    scales[3, 1] = 255
    codes = integers(random, 0, 16, N, K)
    tensors = {"weight": nibbles(codes), "weight_scale": scales}
    out = run("TritonMxFp4LinearKernel", config, tensors, torch.ones(2, K).bfloat16())
    assert out.isnan().any(0).tolist() == [n == 3 for n in range(N)]


# -- the conformance kit, on a few layers here and on all with a GPU -----------------------------

LAYERS: dict[str, list[MMLinearLayerConfig]] = {
    "TritonW4A16LinearKernel": [
        MPLinearLayerConfig((64, 24), (64, 24), scalar_types.int4, BF16, 32, False, out_type=F32),
    ],
    "TritonInt8ScaledMMLinearKernel": [
        Int8ScaledMMLinearLayerConfig(False, True, False, False, (19, 77), BF16),
        Int8ScaledMMLinearLayerConfig(True, False, False, True, (24, 64), F16),
    ],
    "TritonFp8BlockScaledMMKernel": [
        Fp8BlockScaledMMLinearLayerConfig(
            kFp8Static128BlockSym, kFp8Dynamic128Sym, (19, 77), BF16, BF16
        ),
    ],
    "TritonNvFp4LinearKernel": [
        NvFp4LinearLayerConfig((19, 48), kNvfp4Dynamic, BF16),
        NvFp4LinearLayerConfig((24, 64), kNvfp4DynamicToken, F16),
    ],
    "TritonMxFp4LinearKernel": [
        MxFp4LinearLayerConfig((19, 96), kMxfp4Dynamic, F32),
        MxFp4LinearLayerConfig((24, 64), kMxfp8Dynamic, BF16),
    ],
    "TritonMxfp8LinearKernel": [Mxfp8LinearLayerConfig((19, 96), kMxfp8Dynamic, F16)],
}


def layers() -> Iterator[Any]:
    for name, configs in LAYERS.items():
        for number, config in enumerate(configs):
            yield pytest.param(name, config, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "config"), list(layers()))
def test_conforms(name: str, config: MMLinearLayerConfig) -> None:
    who = subject(name)
    for check in (
        check_contract,
        check_numerics,
        check_packing,
        check_nan_propagation,
        check_batch_invariance,
    ):
        check(who, config)


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_and_is_a_right_op(name: str) -> None:
    who, config = subject(name), LAYERS[name][0]
    check_opcheck(who, config)
    check_compile(who, config, backend="aot_eager")


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_on_the_gpu(name: str) -> None:
    check_kernel(class_of(name), device="cuda", spec=SPECS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("M", [1, 40, 200])
@pytest.mark.parametrize("name", LAYERS)
def test_in_a_graph_and_on_the_last_device(name: str, M: int) -> None:
    config = LAYERS[name][0]
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    where = replace(subject(name), device=str(device))
    built = where.build(config)
    K = config.in_features
    dtype = config.activation_dtype
    x = torch.randn(M, K or 0, device=device).to(dtype)
    expected = built.apply(x)
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        given = torch.zeros_like(x)
        # Without a stream of its own, torch captures on one that it made on the first device.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.graph(graph, stream=stream):
            out = built.apply(given)
        given.copy_(x)
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(out, expected)
