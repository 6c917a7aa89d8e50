"""What selection says, with FlashInfer, without it, and with one that is different."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import kFp8DynamicTensorSym, kFp8StaticTensorSym, kMxfp4Dynamic
from qcore.facts.target import Target
from qcore.layers import (
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.registry import Registry
from qcore.registry.entry import RegisteredKernel
from qcore.selection import select
from qcore_flashinfer import library, ops, plugin

Put = Callable[[str | None], None]
BF16 = torch.bfloat16
SPECS = plugin.qcore_kernels()
SHAPE = (4096, 4096)
LAYERS: dict[str, Any] = {
    "fp8": FP8ScaledMMLinearLayerConfig(
        kFp8StaticTensorSym, kFp8DynamicTensorSym, SHAPE, BF16, BF16
    ),
    "nvfp4": NvFp4LinearLayerConfig(SHAPE, input_dtype=BF16),
    "mxfp4": MxFp4LinearLayerConfig(SHAPE, kMxfp4Dynamic, BF16),
    "mxfp8": Mxfp8LinearLayerConfig(SHAPE, input_dtype=BF16),
}


@pytest.fixture
def registry() -> Registry:
    """This plugin's kernels alone."""
    found = Registry()
    for spec in SPECS:
        found._add(RegisteredKernel(spec, "flashinfer", "qcore-flashinfer"))
    return found


@pytest.mark.parametrize("kernel_type", LAYERS)
@pytest.mark.parametrize("arch", [90, 100, 120])
def test_without_the_package(
    flashinfer: Put, registry: Registry, kernel_type: str, arch: int
) -> None:
    flashinfer(None)
    decision = select(LAYERS[kernel_type], f"cuda:sm_{arch}", registry=registry, exhaustive=True)
    assert decision.chosen is None
    reasons = [c.reason for c in decision.candidates if c.stage and "support" in str(c.stage)]
    assert reasons or arch == 90 or (kernel_type, arch) == ("mxfp4", 120)
    assert all("flashinfer-python is not installed" in str(reason) for reason in reasons)


@pytest.mark.parametrize(
    ("kernel_type", "arch", "chosen"),
    [
        ("fp8", 89, "FlashInferFP8ScaledMMLinearKernel"),
        ("fp8", 90, "FlashInferFP8ScaledMMLinearKernel"),
        ("nvfp4", 90, None),
        ("nvfp4", 100, "FlashInferCutlassNvFp4LinearKernel"),
        ("nvfp4", 103, "FlashInferCutlassNvFp4LinearKernel"),
        ("nvfp4", 120, "FlashInferB12xNvFp4LinearKernel"),
        ("mxfp4", 100, "FlashInferMxFp4LinearKernel"),
        ("mxfp4", 120, None),
        ("mxfp8", 90, None),
        ("mxfp8", 100, "FlashInferCutlassMxfp8LinearKernel"),
        ("mxfp8", 120, "FlashInferCutlassMxfp8LinearKernel"),
    ],
)
@pytest.mark.parametrize("release", ["0.6", "0.7"])
def test_with_it(
    flashinfer: Put, registry: Registry, release: str, kernel_type: str, arch: int, chosen: Any
) -> None:
    flashinfer(release)
    decision = select(LAYERS[kernel_type], f"cuda:sm_{arch}", registry=registry)
    assert (decision.chosen.name if decision.chosen else None) == chosen


def test_mxfp4_on_sm120_is_refused_although_flashinfer_names_it(flashinfer: Put) -> None:
    flashinfer("0.7")
    assert library.backend_refusal("mm_fp4", "cute-dsl", 120) is None
    reason = str(_class("FlashInferMxFp4LinearKernel").is_supported(120)[1])
    assert "takes NVFP4 alone" in reason


def test_fp8_is_cutlasss_where_flashinfer_has_it(flashinfer: Put) -> None:
    flashinfer("0.7")
    assert [ops.fp8_backend(cc) for cc in (89, 90, 100, 120)] == [
        "cublas",
        "cublas",
        "cutlass",
        "cutlass",
    ]


def _here(arch: int) -> Target:
    return replace(Target.parse(f"cuda:sm_{arch}"), is_current=True)


def _class(name: str) -> Any:
    spec = next(spec for spec in SPECS if spec.name == name)
    return getattr(import_module(spec.entry.partition(":")[0]), name)


def test_what_this_machine_lacks(flashinfer: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    flashinfer("0.7")
    kernel = _class("FlashInferCutlassNvFp4LinearKernel")

    def why(kernel: Any) -> str:
        with weighing(_here(100)):
            return str(kernel.is_supported()[1])

    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in why(kernel)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "is_available() is false" in why(kernel)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library, "_can_compile", lambda: False)
    assert "no nvcc" in why(kernel)
    monkeypatch.setattr(library, "_can_compile", lambda: True)
    assert why(kernel) == "None"
    monkeypatch.setattr(library, "_has_module", lambda name: False)
    assert "needs nvidia-cudnn-frontend" in why(_class("FlashInferCudnnNvFp4LinearKernel"))
    assert "needs nvidia-cutlass-dsl" in why(_class("FlashInferMxFp4LinearKernel"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda module: delattr(module, "mm_fp4"), "has no mm_fp4"),
        (
            lambda module: setattr(module, "mm_fp4", lambda a, b, a_descale, b_descale: None),
            "does not take alpha, out_dtype",
        ),
    ],
)
def test_another_release(flashinfer: Put, change: Callable[[ModuleType], None], why: str) -> None:
    flashinfer("0.7")
    change(sys.modules["flashinfer"])
    with weighing(Target.parse("cuda:sm_100")):
        able, reason = _class("FlashInferCutlassNvFp4LinearKernel").is_supported()
    assert not able
    assert why in str(reason)


def test_an_import_that_fails_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise OSError("libcuda.so.1: cannot open shared object file")

    library.fault.cache_clear()
    monkeypatch.setattr(library, "find_spec", lambda name: object())
    monkeypatch.setattr(library, "import_module", fail)
    with weighing(Target.parse("cuda:sm_100")):
        reason = str(_class("FlashInferCutlassNvFp4LinearKernel").is_supported()[1])
    library.fault.cache_clear()
    assert "importing flashinfer raised OSError: libcuda" in reason


def test_doctor(flashinfer: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    flashinfer(None)
    (line,) = plugin.qcore_doctor()
    assert not line.ok
    assert "flashinfer-python is not installed" in line.text
    flashinfer("0.7")
    monkeypatch.undo()


def test_declared_where_any_release_might_run_them() -> None:
    names = [spec.name for spec in SPECS]
    assert len(names) == len(set(names))
    backends = plugin.qcore_plugin().backends
    for spec in SPECS:
        assert spec.backend in backends
        kernel = _class(spec.name)
        assert kernel.kernel_type == spec.kernel_type
        assert kernel.get_min_capability() >= (spec.min_capability or 0)
