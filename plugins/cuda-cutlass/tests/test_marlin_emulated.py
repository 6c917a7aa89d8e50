"""Marlin's kernels, run on the processor as they are generated; see marlin_emulation.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marlin_oracle import DTYPES, Problem, bias_order, narrow_activations, problem
from qcore_cuda.marlin.instances import THREAD_CONFIGS, THREAD_M_BLOCKS, Instance, instances
from w4_oracle import activations

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
COMPILER = shutil.which("g++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ for the emulation of kernels")

Tensor = torch.Tensor


class Params(ctypes.Structure):
    """csrc/marlin/params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "scales", "zeros", "g_idx")),
        *((name, ctypes.c_void_p) for name in ("a_scales", "global_scale", "bias", "c")),
        *((name, ctypes.c_void_p) for name in ("partials", "counters")),
        *((name, ctypes.c_longlong) for name in ("lda", "ldc")),
        *((name, ctypes.c_int) for name in ("m", "n", "k", "k_in", "n_out", "groups")),
        ("a_scale_stride", ctypes.c_int),
    )


def aligned(t: Tensor) -> Tensor:
    """A copy that begins where 16-byte copies can."""
    raw = torch.empty(t.numel() * t.element_size() + 16, dtype=torch.uint8)
    at = -raw.data_ptr() % 16
    view = raw[at : at + t.numel() * t.element_size()].view(t.dtype).reshape(t.shape)
    return view.copy_(t) if t.element_size() > 1 else _copy_bytes(view, t)


def _copy_bytes(to: Tensor, t: Tensor) -> Tensor:
    to.view(torch.uint8).copy_(t.contiguous().view(torch.uint8))
    return to


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Instance], ctypes.CDLL]:
    """Compiles all kernels of a source file's schemes once."""
    folder = tmp_path_factory.mktemp("emulated")
    built: dict[str, ctypes.CDLL] = {}

    def of(instance: Instance) -> ctypes.CDLL:
        if instance.name not in built:
            source = folder / f"{instance.name}.cpp"
            source.write_text(f'#include "marlin/kernel.cuh"\n{instance.line}\n')
            library = source.with_suffix(".so")
            include = [f"-I{HERE}", f"-I{CSRC}"]
            flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-DQCORE_MARLIN_EMULATED"]
            assert COMPILER is not None
            command = [COMPILER, *flags, *include, str(source), "-o", str(library)]
            subprocess.run(command, check=True)
            built[instance.name] = ctypes.CDLL(str(library))
        return built[instance.name]

    return of


def run(
    library: ctypes.CDLL,
    instance: Instance,
    x: Tensor,
    p: Problem,
    *,
    a_scales: Tensor | None = None,
    bias: Tensor | None = None,
    n_out: int | None = None,
    blocks: int = 3,
    order: int = 0,
) -> Tensor:
    """One launch; ``x`` may have fewer columns than the weight."""
    K, N = p.weight.shape
    M = x.shape[0]
    n_out = N if n_out is None else n_out
    scheme = instance.scheme
    tile_k, tile_n, _ = THREAD_CONFIGS[instance.thread_config]
    rows = int(16 * THREAD_M_BLOCKS[instance.m_block])
    out = torch.full((M, n_out), float("nan"), dtype=DTYPES[scheme.c_type])
    counters = torch.zeros(blocks, dtype=torch.int32)
    partials = aligned(torch.full((blocks * 2 * rows * tile_n,), float("nan")))
    pitch = -(-x.shape[1] * x.element_size() // 16) * 16 // x.element_size()
    padded = torch.full((M, pitch), 77).to(x.dtype)
    (padded.view(torch.uint8) if x.element_size() == 1 else padded)[:, : x.shape[1]] = (
        x.view(torch.uint8) if x.element_size() == 1 else x
    )
    kept = [aligned(t) for t in (padded, p.words, p.scales)]
    optional = [p.zeros, p.g_idx, a_scales, p.global_scale, bias]
    others = [None if t is None else aligned(t) for t in optional]
    at = [t.data_ptr() for t in kept]
    zeros, g_idx, of_a, of_all, of_bias = (None if t is None else t.data_ptr() for t in others)
    params = Params(
        at[0], at[1], at[2], zeros, g_idx, of_a, of_all, of_bias, out.data_ptr(),
        partials.data_ptr(), counters.data_ptr(), pitch, n_out, M, N, K, x.shape[1], n_out,
        p.scales.shape[0], 1,
    )  # fmt: skip
    kernel = getattr(library, instance.name)
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    kernel(ctypes.addressof(params), blocks, order)
    assert not counters.any(), "counters are not zero again"
    assert tile_k > 0
    return out


def check(out: Tensor, x: Tensor, p: Problem, instance: Instance, bias: Tensor | None) -> None:
    """Within the bounds of the format's arithmetic: float32 sums, weights rounded where scaled."""
    K = x.shape[1]
    weight = p.weight[:K]
    exact, sizes = x.double() @ weight, x.double().abs() @ weight.abs()
    if bias is not None:
        exact = exact + bias.double()
    allowed = (K + 16) * 2.0**-23 * sizes
    scheme = instance.scheme
    unit = 2.0**-8 if scheme.c_type == "bfloat16" else 2.0**-11
    if scheme.a_type not in ("s8", "fe4m3fn") and scheme.s_type is None and scheme.group_blocks >= 0:
        times = 2 if scheme.is_zp_float else 1  # the zero point is taken off with rounding too
        norm = (x.double() ** 2 @ weight**2).sqrt()
        allowed += times * 8 * unit * norm + 2.0**-24 * x.double().abs().sum(-1, True)
        if scheme.is_zp_float:  # next to its zero point a code is as uncertain as 15 units
            scale = 0.02 * 16 * unit * (x.double() ** 2).sum(-1, True).sqrt()
            allowed += 8 * scale
    allowed += unit * (exact.abs() + allowed) + 2.0**-24
    assert out.isfinite().all(), instance.name
    error = (out.double() - exact).abs()
    assert (error <= allowed).all(), (instance.name, float((error / allowed).max()))


ALL = instances((75, 80, 89))
BY_SCHEME = {i.scheme: i for i in ALL if THREAD_CONFIGS[i.thread_config][2] == 128}
"""One kernel of each scheme, the tile with most rows."""


def _inputs(instance: Instance, M: int, K: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Activations, what they are, and their scales."""
    a_type = instance.scheme.a_type
    if a_type in ("s8", "fe4m3fn"):
        x, scales = narrow_activations(a_type, M, K)
        return x, x.float().double() * scales.double()[:, None], scales
    x = activations(M, K, DTYPES[a_type])
    return x, x.double(), None


@pytest.mark.parametrize("instance", BY_SCHEME.values(), ids=lambda i: i.name)
def test_schemes(instance: Instance, build: Callable[[Instance], ctypes.CDLL]) -> None:
    K, N, M = 288, 128, 19  # K is not whole steps of a tile
    if instance.scheme.group_blocks in (4, 8):
        K = 16 * instance.scheme.group_blocks * 3
    p = problem(instance.scheme, K, N)
    x, value, scales = _inputs(instance, M, K)
    bias = torch.randn(N, generator=torch.Generator().manual_seed(5))
    bias = bias.to(DTYPES[instance.scheme.c_type])
    out = run(build(instance), instance, x, p, a_scales=scales, bias=bias_order(bias))
    check(out, value, p, instance, bias)


TILES = [i for i in ALL if i.scheme.config in ("gptq-int4", "int8-gptq-int4", "gptq-int8")]
TILES = [i for i in TILES if i.scheme.family == 80 and i.scheme.group_blocks == 8]
TILES = [i for i in TILES if i.scheme.c_type == "bfloat16"]


@pytest.mark.parametrize("instance", TILES, ids=lambda i: i.name)
def test_tiles(instance: Instance, build: Callable[[Instance], ctypes.CDLL]) -> None:
    """Edges of every tile; any number of blocks, in any order, gives the same."""
    K, N = 384, 320
    rows = int(16 * THREAD_M_BLOCKS[instance.m_block])
    p = problem(instance.scheme, K, N)
    x, value, scales = _inputs(instance, rows + 1, K)
    first = None
    for blocks, order in ((1, 0), (4, 0), (4, 1), (13, 0)):
        out = run(build(instance), instance, x, p, a_scales=scales, blocks=blocks, order=order)
        check(out, value, p, instance, None)
        if blocks == 4:
            first = out if first is None else first
            assert torch.equal(out, first)


@pytest.mark.parametrize("M", [1, 7, 8])
@pytest.mark.parametrize("n_out", [65, 127, 128])
def test_padding(M: int, n_out: int, build: Callable[[Instance], ctypes.CDLL]) -> None:
    """Fewer inputs and outputs than the padded weight has."""
    instance = next(i for i in TILES if i.scheme.config == "gptq-int4")
    p = problem(instance.scheme, 256, 128)
    x, value, _ = _inputs(instance, M, 250)
    out = run(build(instance), instance, x, p, n_out=n_out)
    p.weight = p.weight[:, :n_out]
    check(out, value, p, instance, None)
