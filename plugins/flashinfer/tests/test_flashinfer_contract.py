"""Every kernel against the stand-in of each release: calls and results as they must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.plugin import KernelSpec
from qcore.testing import (
    Arithmetic,
    Subject,
    check_answers,
    check_claimed,
    conformance_configs,
)
from qcore_flashinfer import plugin
from stand_in import KNOWN

SPECS = [spec for spec in plugin.qcore_kernels() if spec.backend.startswith("flashinfer")]
COMPOSITE = "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"

each_release = pytest.mark.parametrize("release", sorted(KNOWN))
each_kernel = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
Put = Callable[[str | None], None]


def class_of(spec: KernelSpec) -> Any:
    return getattr(import_module(spec.entry.partition(":")[0]), spec.name)


def subject(spec: KernelSpec) -> Subject:
    kernel = class_of(spec)
    here = replace(spec, platforms=("cpu",), min_capability=None, max_capability=None, modules=())
    return Subject(kernel, "cpu", here, Arithmetic.of(kernel))


@each_release
@each_kernel
def test_conforms(
    spec: KernelSpec, release: str, flashinfer: Put, deep_gemm: Any, monkeypatch: Any
) -> None:
    flashinfer(release)
    what = f"a stand-in with the signatures of flashinfer-python {KNOWN[release]['version']}"
    check_claimed(subject(spec), conformance_configs(spec.kernel_type), "contract", what)


@each_release
@each_kernel
def test_answers_are_in_words(spec: KernelSpec, release: str, flashinfer: Put) -> None:
    flashinfer(release)
    least = spec.max_capability or spec.min_capability
    with weighing(Target.parse(f"cuda:sm_{90 if least == 90 else 120}")):
        check_answers(subject(spec), conformance_configs(spec.kernel_type))


def test_the_composite_changes_over_at_32_rows(
    flashinfer: Put, deep_gemm: list[int], generator: Any
) -> None:
    import torch

    flashinfer("0.7")
    spec = next(s for s in SPECS if s.name == COMPOSITE)
    who = subject(spec)
    config = next(
        c for c in conformance_configs("fp8_block") if who.kernel_class.can_implement(c)[0]
    )
    built = who.build(config)
    for M in (1, 31, 32, 70):
        built.apply(torch.randn(M, config.weight_shape[1], generator=generator).bfloat16())
    assert deep_gemm == [32, 70]
