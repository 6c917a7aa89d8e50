"""Runs generated kernels on the processor, compiled with marlin_emulation.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from marlin_oracle import DTYPES, Problem
from qcore_cuda.marlin.instances import THREAD_CONFIGS, THREAD_M_BLOCKS, Instance

__all__ = ["COMPILER", "launch", "run"]

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
COMPILER = shutil.which("g++")

Tensor = torch.Tensor


class Params(ctypes.Structure):
    """csrc/marlin/params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "scales", "zeros", "g_idx")),
        *((name, ctypes.c_void_p) for name in ("a_scales", "global_scale", "bias", "c")),
        *((name, ctypes.c_void_p) for name in ("partials", "counters")),
        *((name, ctypes.c_longlong) for name in ("lda", "ldc")),
        *((name, ctypes.c_int) for name in ("m", "n", "k", "k_in", "n_out", "groups")),
        *((name, ctypes.c_int) for name in ("a_scale_stride", "float_scales", "plain_bias")),
    )


def aligned(t: Tensor) -> Tensor:
    """A copy that begins where 16-byte copies can."""
    raw = torch.empty(t.numel() * t.element_size() + 16, dtype=torch.uint8)
    at = -raw.data_ptr() % 16
    view = raw[at : at + t.numel() * t.element_size()].view(t.dtype).reshape(t.shape)
    _bytes(view).copy_(_bytes(t.contiguous()))
    return view


def _bytes(t: Tensor) -> Tensor:
    return t.view(torch.uint8) if t.element_size() == 1 else t


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qcore-marlin-emulated-")


@cache
def _built(instance: Instance) -> ctypes.CDLL:
    source = Path(_folder().name) / f"{instance.name}.cpp"
    source.write_text(f'#include "marlin/kernel.cuh"\n{instance.line}\n')
    library = source.with_suffix(".so")
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-DQCORE_MARLIN_EMULATED"]
    assert COMPILER is not None
    command = [COMPILER, *flags, f"-I{HERE}", f"-I{CSRC}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def launch(
    instance: Instance,
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    *,
    n_out: int,
    zeros: Tensor | None = None,
    g_idx: Tensor | None = None,
    a_scales: Tensor | None = None,
    global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    plain_bias: bool = False,
    blocks: int = 3,
    order: int = 0,
) -> Tensor:
    """One launch; ``x`` [M, K] may have fewer columns than the weight."""
    scheme = instance.scheme
    bits = 4 if scheme.b_type in ("u4", "u4b8", "fe2m1f") else 8
    K, N = words.shape[0] * 16, words.shape[1] * 2 // bits
    M = x.shape[0]
    _, tile_n, _ = THREAD_CONFIGS[instance.thread_config]
    rows = int(16 * THREAD_M_BLOCKS[instance.m_block])
    out = torch.full((M, n_out), float("nan"), dtype=DTYPES[scheme.c_type])
    counters = torch.zeros(blocks, dtype=torch.int32)
    partials = aligned(torch.full((blocks * 2 * rows * tile_n,), float("nan")))
    pitch = -(-x.shape[1] * x.element_size() // 16) * 16 // x.element_size()
    padded = torch.full((M, pitch), 77).to(x.dtype)
    _bytes(padded)[:, : x.shape[1]] = _bytes(x)
    kept = [aligned(t) for t in (padded, words, scales)]
    optional = [zeros, g_idx, a_scales, global_scale, bias]
    others = [None if t is None else aligned(t) for t in optional]
    params = Params(
        *(t.data_ptr() for t in kept),
        *(None if t is None else t.data_ptr() for t in others),
        out.data_ptr(), partials.data_ptr(), counters.data_ptr(),
        pitch, n_out, M, N, K, x.shape[1], n_out, scales.shape[0],
        int(a_scales is not None and a_scales.numel() > 1),
        int(scales.dtype == torch.float32), int(plain_bias),
    )  # fmt: skip
    kernel = getattr(_built(instance), instance.name)
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    kernel(ctypes.addressof(params), blocks, order)
    assert not counters.any(), "counters are not zero again"
    return out


def run(instance: Instance, x: Tensor, p: Problem, **others: Any) -> Tensor:
    """The product with a problem's weight."""
    n_out = others.pop("n_out", p.weight.shape[1])
    return launch(
        instance, x, p.words, p.scales, n_out=n_out, zeros=p.zeros, g_idx=p.g_idx,
        global_scale=p.global_scale, **others,
    )  # fmt: skip
