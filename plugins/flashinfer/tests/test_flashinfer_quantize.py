"""Activations to codes and tiles of scales: in torch against the core's rounding, in Triton too.

Triton's kernel runs on a GPU where there is one, and elsewhere in Triton's interpreter.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from qcore.numerics.activation_quant import mxfp4_round, mxfp8_quant, nvfp4_round
from qcore.numerics.small_floats import decode_e8m0
from qcore_flashinfer.layouts import pad_to, round_up, swizzle_128x4
from qcore_flashinfer.quantize import BLOCK, quantize_blocks_in_torch
from stand_in import _E2M1, _e8m0, _unswizzled

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

each_kind = pytest.mark.parametrize("kind", sorted(BLOCK))
SHAPES = [(1, 32, 32), (3, 64, 128), (130, 96, 128), (257, 160, 256), (0, 64, 64)]


def by_torch(x: torch.Tensor, kind: str, outer: torch.Tensor | None, K: int) -> tuple:
    return quantize_blocks_in_torch(x, kind, outer, K)


def by_triton(x: torch.Tensor, kind: str, outer: torch.Tensor | None, K: int) -> tuple:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if not GPU and not _interpreter_works():
        pytest.skip("the interpreter of this triton needs numpy below 2.4")
    from qcore_flashinfer.jit_quantize import quantize_by_triton

    given = None if outer is None else outer.to(DEVICE)
    codes, scale = quantize_by_triton(x.to(DEVICE), kind, given, K)
    return codes.cpu(), scale.cpu()


def _interpreter_works() -> bool:
    import inspect
    from importlib import import_module

    numpy = import_module("numpy")
    source = inspect.getsource(import_module("triton.runtime.interpreter"))
    new = numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"
    return not (new and "int(self.handle.data)" in source)


both = pytest.mark.parametrize("quantize", [by_torch, by_triton], ids=["torch", "triton"])


def values(codes: torch.Tensor, scale: torch.Tensor, kind: str, K: int) -> torch.Tensor:
    """What codes and scales stand for, float64 [M, K'], without NVFP4's outer scale."""
    bytes_ = _unswizzled(scale, codes.shape[0], K // BLOCK[kind])
    if kind == "nvfp4":
        scales = bytes_.view(torch.float8_e4m3fn).double()
    else:
        scales = _e8m0(bytes_)
    if kind == "mxfp8":
        wide = codes.view(torch.float8_e4m3fn).double()
    else:
        wide = _E2M1[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]
    return wide * scales.repeat_interleave(BLOCK[kind], 1)


def wanted(x: torch.Tensor, kind: str, outer: torch.Tensor | None) -> torch.Tensor:
    if kind == "nvfp4":
        assert outer is not None
        return nvfp4_round(x, outer).double() / outer.double()
    if kind == "mxfp4":
        return mxfp4_round(x).double()
    codes, scale = mxfp8_quant(x)
    return codes.double() * decode_e8m0(scale, torch.float64).repeat_interleave(32, 1)


@both
@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounds_as_the_core_does(quantize, kind, dtype, shape, generator) -> None:  # type: ignore[no-untyped-def]
    M, K, K_padded = shape
    x = torch.randn(M, K, generator=generator) * torch.logspace(-3, 2, K)
    x[: M // 2, :32] = 0.0
    x = x.to(dtype)
    outer = torch.tensor([0.0137]) if kind == "nvfp4" else None
    codes, scale = quantize(x, kind, outer, K_padded)
    row = K_padded if kind == "mxfp8" else K_padded // 2
    assert codes.shape == (M, row)
    assert scale.shape == (round_up(M, 128), round_up(K_padded // BLOCK[kind], 4))
    got = values(codes, scale, kind, K_padded)
    assert torch.equal(got[:, K:], torch.zeros(M, K_padded - K, dtype=torch.float64))
    expected = wanted(x, kind, outer)
    # NVFP4's outer scale is divided out again of what the core rounds: float32 has that much.
    slack = 2.0**-22 * expected.abs() if kind == "nvfp4" else 0.0
    assert ((got[:, :K] - expected).abs() <= slack).all()


@both
@each_kind
def test_padding_of_scales_is_zero(quantize, kind, generator) -> None:  # type: ignore[no-untyped-def]
    outer = torch.tensor([0.5]) if kind == "nvfp4" else None
    x = torch.randn(5, 32, generator=generator)
    _, scale = quantize(x, kind, outer, 32)
    whole = _unswizzled(scale, *scale.shape)
    assert whole[:5, : 32 // BLOCK[kind]].any()
    whole[:5, : 32 // BLOCK[kind]] = 0
    assert not whole.any()


@both
@each_kind
def test_edges(quantize, kind) -> None:  # type: ignore[no-untyped-def]
    """NaN shows in its own block alone; the magnitudes where MX scales change over."""
    x = torch.zeros(1, 96)
    x[0, 5] = float("nan")
    x[0, 32:64] = 1.75 if kind != "nvfp4" else 1e6
    x[0, 64:] = 1.749
    outer = torch.tensor([1.0]) if kind == "nvfp4" else None
    got = values(*quantize(x, kind, outer, 128), kind, 128)
    size = BLOCK[kind]
    assert got[0, :size].isnan().all()
    assert torch.equal(got[0, size:96], wanted(x, kind, outer)[0, size:])


@both
def test_columns_of_a_wider_tensor(quantize, generator) -> None:  # type: ignore[no-untyped-def]
    wide = torch.randn(6, 100, generator=generator)
    x = wide[:, 3:67]
    for given in (x, x.t().contiguous().t()):
        for got, expected in zip(
            quantize(given, "mxfp8", None, 64),
            by_torch(x.contiguous(), "mxfp8", None, 64),
            strict=True,
        ):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(("M", "S"), [(128, 4), (1, 1), (129, 5), (300, 12)])
def test_tiles_are_where_they_must_be(M: int, S: int, generator: torch.Generator) -> None:
    scale = torch.randint(1, 255, (M, S), dtype=torch.uint8, generator=generator)
    tiles = swizzle_128x4(scale)
    assert tiles.is_contiguous()
    assert tiles.shape == (round_up(M, 128), round_up(S, 4))
    assert torch.equal(_unswizzled(tiles, M, S), scale)
    assert int(tiles.count_nonzero()) == M * S


def test_padding_leaves_what_fits_alone() -> None:
    given = torch.ones(3, 4, dtype=torch.uint8)
    assert pad_to(given, 0, 3) is given
    assert pad_to(given, 1, 6).sum() == 12
