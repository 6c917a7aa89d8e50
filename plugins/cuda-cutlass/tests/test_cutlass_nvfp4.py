"""CUTLASS's NVFP4 class: packing, padding and the op's arguments, by a product in float64.

The op itself runs on SM100 and SM120 alone. Here one with its schema stands in for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nvfp4_operands import nvfp4_product, nvfp4_values
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.layers import NvFp4LinearLayerConfig
from qcore.numerics.activation_quant import nvfp4_round
from qcore.selection import select
from qcore.testing import (
    Arithmetic,
    Subject,
    check_claimed,
    check_kernel,
    check_numerics,
    conformance_configs,
    isolated_registry,
)
from qcore.testing.answers import check_answers
from qcore_cuda import library, ops, plugin
from qcore_cuda.kernels.cutlass_nvfp4 import CutlassNvFp4LinearKernel
from qcore_cuda.kernels.cutlass_nvfp4_operands import quantize_rows, swizzled
from qcore_cuda.ops import scaled_fp4_mm

NAME = "cutlass_scaled_fp4_mm.new"
SPEC = next(s for s in plugin.qcore_kernels() if s.name == "CutlassNvFp4LinearKernel")
CONFIGS = conformance_configs("nvfp4")
EVERYTHING = ((80, 90, 100, 120), ("90a", "100a", "120a"))
SOURCE = Path(__file__).parents[1] / "csrc" / "nvfp4_mm.cpp"


def schema_in_source() -> str:
    """What ``m.def`` is given for `NAME`."""
    text = SOURCE.read_text(encoding="utf-8").replace('"\n        "', "")
    found = re.search(rf'm\.def\("({re.escape(NAME)}\([^"]*)"', text)
    assert found is not None
    return found[1]


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    block_scale_a: torch.Tensor,
    block_scale_b: torch.Tensor,
    alpha: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Checks what ``nvfp4_mm.cpp`` checks and computes in float64."""
    assert b.shape[0] % 8 == 0
    return nvfp4_product(a, b, block_scale_a, block_scale_b, alpha).to(out_dtype)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made = torch.library.Library("qcore_cuda", "FRAGMENT")
    if library.LIBRARY.is_file():
        library.load()
    else:
        monkeypatch.setattr(library, "load", lambda: None)
        made.define(schema_in_source())
        torch.library.register_fake(f"qcore_cuda::{NAME}", scaled_fp4_mm._scaled_fp4_mm, lib=made)
    made.impl(NAME, product, "CPU")
    yield
    made._destroy()
    vars(torch.ops.qcore_cuda).pop("cutlass_scaled_fp4_mm", None)


def subject() -> Subject:
    kernel = CutlassNvFp4LinearKernel
    here = replace(SPEC, platforms=("cpu",), min_capability=None, max_capability=None, modules=())
    return Subject(kernel, "cpu", here, Arithmetic.of(kernel))


def what_this_shows() -> tuple[str, str]:
    """That the kernel was compiled, where it was; its results are the stand-in's."""
    archs = [f"sm_{a}" for a in library.compiled_archs()[1] if a in ("100a", "120a")]
    if not archs:
        return "contract", "an op with the schema of cutlass_scaled_fp4_mm, in float64"
    return "compiled", f"for {' and '.join(archs)}; its schema and calls by an op in float64"


def test_conforms(stand_in: None) -> None:
    who = subject()
    claimed = check_claimed(who, CONFIGS, *what_this_shows())
    assert {c.out_dtype or c.input_dtype for c in claimed} == {torch.bfloat16, torch.float16}
    with weighing(Target.parse("cuda:sm_100")):
        check_answers(who, CONFIGS)


@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (130, 80), (16, 2064), (300, 32)])
def test_sizes_that_are_padded(N: int, K: int, stand_in: None) -> None:
    check_numerics(subject(), NvFp4LinearLayerConfig((N, K), input_dtype=torch.float16))


@pytest.mark.parametrize("M", [0, 1, 5, 128, 130])
@pytest.mark.parametrize("K", [16, 64, 80])
def test_rows_are_rounded_as_the_config_says(M: int, K: int, generator: torch.Generator) -> None:
    x = torch.randn(M, K, generator=generator) * 3
    x[: min(M, 1), :16] = 0.0
    outer = torch.tensor([0.003])
    codes, scale = quantize_rows(x, outer, 1.0 / outer)
    # Scales of scales and codes are multiplied in another order, each product rounded to float32.
    found = nvfp4_values(codes, scale)[:, :K] * outer.double()
    torch.testing.assert_close(found.float(), nvfp4_round(x, outer), rtol=2.0**-22, atol=0.0)
    fake, fake_scale = quantize_rows(x.to("meta"), outer.to("meta"), outer.to("meta"))
    assert (fake.shape, fake_scale.shape) == (codes.shape, scale.shape)


def test_the_order_of_scales() -> None:
    scale = torch.arange(200 * 7).remainder(251).to(torch.uint8).reshape(200, 7)
    flat = swizzled(scale).reshape(-1)
    assert flat.numel() == 256 * 8
    for m, k in [(0, 0), (1, 0), (32, 0), (127, 3), (128, 4), (199, 6), (77, 5)]:
        at = (m // 128 * 2 + k // 4) * 512 + m % 32 * 16 + m % 128 // 32 * 4 + k % 4
        assert flat[at] == scale[m, k]


def test_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(arch: int) -> str:
        with weighing(Target.parse(f"cuda:sm_{arch}")):
            return str(CutlassNvFp4LinearKernel.is_supported()[1])

    monkeypatch.setattr(library, "compiled_archs", lambda: EVERYTHING)
    assert ask(100) == ask(120) == "None"
    for arch in (90, 103, 121):
        assert f"written for sm_100a and sm_120a; this device is sm_{arch}" in ask(arch)
    monkeypatch.setattr(library, "compiled_archs", lambda: ((80, 90), ("90a",)))
    assert "compiled for sm_90a; this device is sm_100" in ask(100)
    monkeypatch.setattr(library, "compiled_archs", lambda: ((), ()))
    assert "without its compiled library" in ask(100)


@pytest.mark.parametrize("arch", [100, 120])
def test_it_is_chosen_where_it_runs(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "compiled_archs", lambda: EVERYTHING)
    config = NvFp4LinearLayerConfig((256, 512), input_dtype=torch.bfloat16)
    with isolated_registry(plugin):
        chosen = select(config, f"cuda:sm_{arch}").chosen
        assert chosen is not None
        assert chosen.name == "CutlassNvFp4LinearKernel"


@pytest.mark.skipif(not library.LIBRARY.is_file(), reason="the library is not built")
def test_the_fake_of_the_op() -> None:
    def meta(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    alpha = meta(1, dtype=torch.float32)
    out = ops.cutlass_scaled_fp4_mm(
        meta(5, 32), meta(24, 32), meta(128, 4), meta(128, 4), alpha, torch.float16
    )
    assert out.shape == (5, 24)
    assert out.dtype == torch.float16


@pytest.mark.gpu
def test_every_layer_on_the_gpu() -> None:
    supported: Any = CutlassNvFp4LinearKernel.is_supported()
    if not supported[0]:
        pytest.skip(supported[1])
    check_kernel(CutlassNvFp4LinearKernel, device="cuda", spec=SPEC)
