"""Runs csrc/w4_mid_m_kernel.cuh and w4_sm90_kernel.cuh on the processor."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from host_compiler import COMPILER, compiled
from qcore_cuda.kernels.gptq_packing import in_lanes, pack_along_k
from small_float_oracle import FloatWeight
from w4_oracle import Weight

__all__ = ["COMPILER", "WAYS", "converted", "emulated", "nvfp4_converted", "planned", "way"]

HERE = Path(__file__).parent
WAYS = ("few", "mid", "many", "whole")

Tensor = torch.Tensor


class Arguments(ctypes.Structure):
    """Of w4_arguments.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "words", "scales", "zeros")),
        *((name, ctypes.c_void_p) for name in ("column_scales", "bias", "out")),
        ("x_stride", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("m", "x_k", "k", "n", "n_out", "groups", "group_size")),
        *((name, ctypes.c_int) for name in ("bits", "floats", "zero", "add", "bfloat")),
        *((name, ctypes.c_int) for name in ("bias_float", "out_float")),
        *(
            (name, ctypes.c_int)
            for name in ("row_tiles", "column_warps", "split", "k_warps", "seed", "lanes")
        ),
    )


@cache
def _library(name: str = "w4_emulated") -> ctypes.CDLL:
    source = (HERE / f"{name}.cpp").read_text(encoding="utf-8")
    return compiled(source, f"-I{HERE / 'emulated'}", f"-I{HERE}")


def aligned(t: Tensor) -> Tensor:
    """A copy that begins where copies of 16 bytes can."""
    room = torch.empty(t.numel() * t.element_size() + 16, dtype=torch.uint8)
    at = -room.data_ptr() % 16
    view = room[at : at + t.numel() * t.element_size()].view(t.dtype).reshape(t.shape)
    view.copy_(t)
    return view


def emulated(
    x: Tensor,
    w: Weight | FloatWeight,
    *,
    constant: int | None = None,
    v2: bool = True,
    bias: Tensor | None = None,
    n_out: int | None = None,
    out_float: bool = False,
    row_tiles: int = 0,
    column_warps: int = 0,
    split: int = 0,
    k_warps: int = 0,
    seed: int = 1,
    many: int = 0,
    lanes: bool = False,
) -> Tensor:
    """``x`` [M, K or less] times integers or floats of 4 or 8 bits, K and N multiples of 32.

    Args:
        x: float16 or bfloat16, like the weight's scales.
        w: codes, zero points, scales.
        constant: the one zero point of all; None for the weight's own.
        v2: how zero points are stored.
        bias: of x's dtype or float32.
        n_out: columns that are wanted; None for all.
        out_float: whether the result is float32.
        row_tiles: 1, 2, 4 or 8; 0 as the kernel chooses.
        column_warps: 1 to 8; 0 for the division that the kernel chooses.
        split: 1, 2, 4 or 8, where column_warps is given.
        k_warps: likewise, 1 ... 8; 0 for as many as where two blocks share a processor.
        seed: the order of threads and copies.
        many: clusters at a time of the kernel for many rows, which is meant then: `row_tiles` and
            `column_warps` are its tile, `split` the parts of K or 0, `k_warps` the stages that
            clusters without a tile take over from others.
        lanes: whether words are those of `in_lanes`.
    """
    K, N = w.codes.shape
    groups = w.scales.shape[0]
    n_out = N if n_out is None else n_out
    codes = torch.from_numpy(w.codes).to(torch.uint8)
    rows = torch.full((x.shape[0], -(-x.shape[1] // 8) * 8 + 8), 77.0).to(x.dtype)
    rows[:, : x.shape[1]] = x
    floats = int(isinstance(w, FloatWeight))
    scales = w.scales
    if isinstance(w, FloatWeight) and w.size == 16:
        floats, scales = 2, w.scale_bytes
        groups = scales.shape[0]
    words = in_lanes(codes) if lanes else pack_along_k(codes, w.bits)
    given = [aligned(t) for t in (rows, words, scales)]
    column = w.column if isinstance(w, FloatWeight) else None
    zeros = aligned(w.qzeros(v2)) if isinstance(w, Weight) and constant is None else None
    bias = None if bias is None else bias.contiguous()
    out = torch.full((x.shape[0], n_out), float("nan"))
    out = out if out_float else out.to(x.dtype)
    arguments = Arguments(
        *(t.data_ptr() for t in given),
        *(None if t is None else t.data_ptr() for t in (zeros, column, bias)),
        out.data_ptr(), rows.stride(0),
        x.shape[0], x.shape[1], K, N, n_out, groups, -(-K // groups // 32) * 32,
        w.bits, floats, constant or 0, int(not v2), int(x.dtype == torch.bfloat16),
        int(bias is not None and bias.dtype == torch.float32), int(out_float),
        row_tiles, column_warps, split, k_warps, seed, int(lanes),
    )  # fmt: skip
    if many:
        found = (ctypes.c_int * 2)()
        _library("w4_sm90_emulated").multiply_many(ctypes.byref(arguments), many, found)
        assert (found[0] > 0) == (k_warps > 0)
        assert found[1] == 0  # flags are as they were
    else:
        _library().multiply(ctypes.byref(arguments))
    return out


def planned(M: int, N: int, K: int, bits: int = 4, whole: bool = True) -> dict[str, int]:
    """The division on 132 processors, for groups of whole pieces or others."""
    found = (ctypes.c_int * 7)()
    _library().plan(M, N, K, bits, int(whole), 132, found)
    names = ("row_tiles", "column_warps", "k_warps", "split", "stages", "stage_bytes", "bytes")
    return dict(zip(names, found, strict=True))


# Clusters at a time on an H200, by their blocks: where each has a processor, where two share.
ALONE = (0, 0, 66, 39, 30, 22, 17, 15, 15)
SHARED = (0, 0, 132, 79, 62, 47, 39, 32, 30)


def many_plan(M: int, N: int, K: int, *, few_help: bool = True) -> tuple[int, int, int]:
    """The tile's rows and columns and the parts of K that the kernel for many rows takes.

    0: whole tiles; less: helpers have so many times 64 inputs of the last ones.
    """
    table = [*SHARED, *ALONE, *ALONE, *ALONE]
    clusters, found = (ctypes.c_int * len(table))(*table), (ctypes.c_int * 3)()
    _library().many_plan(M, N, K, int(few_help), clusters, found)
    return found[0], found[1], found[2]


def way(
    M: int,
    N: int,
    K: int = 4096,
    *,
    can: str = "few sm90 mid",
    whole: bool = True,
    few_rows: int = -1,
) -> str:
    """Which kernel is taken on 132 processors, of those that ``can`` run the weight."""
    fits = [int(name in can.split()) for name in ("few", "sm90", "mid")]
    return WAYS[_library().way(*fits, int(whole), M, N, K, 132, few_rows)]


def converted(word: int, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Floats of a word: in pairs at places known to the compiler, at others; and as float32.

    The first two are of ``dtype``, [pairs, 2].
    """
    count = 16 // bits
    pairs, floats = (ctypes.c_uint32 * (2 * count))(), (ctypes.c_float * (2 * count))()
    _library().small_floats(
        bits, int(dtype == torch.bfloat16), ctypes.c_uint32(word), pairs, floats
    )
    made = torch.frombuffer(bytearray(pairs), dtype=dtype).reshape(2, count, 2)
    return made[0], made[1], torch.tensor(list(floats))


def nvfp4_converted(word: int, byte: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """Eight weights of NVFP4 as `converted` has floats; and the scale whose byte it is."""
    pairs = (ctypes.c_uint32 * 8)()
    _library().nvfp4.restype = ctypes.c_float
    scale = _library().nvfp4(
        int(dtype == torch.bfloat16), ctypes.c_uint32(word), ctypes.c_uint32(byte), pairs
    )
    made = torch.frombuffer(bytearray(pairs), dtype=dtype).reshape(2, 4, 2)
    return made[0], made[1], scale
