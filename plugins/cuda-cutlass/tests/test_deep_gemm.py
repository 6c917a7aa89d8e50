"""DeepGEMM's wrapper against a stand-in with the signature of sgl-deep-gemm 0.2.5."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.kernels.deep_gemm import deep_gemm_fault
from qcore.testing import (
    Arithmetic,
    Subject,
    check_compile,
    check_contract,
    check_kernel,
    check_numerics,
    check_opcheck,
    check_packing,
    conformance_configs,
)
from qcore.testing.answers import check_answers
from qcore_cuda import plugin
from qcore_cuda.kernels.deep_gemm import DeepGemmFp8BlockScaledMMKernel

SPEC = next(s for s in plugin.qcore_kernels() if s.name == "DeepGemmFp8BlockScaledMMKernel")
CONFIGS = conformance_configs("fp8_block")
PARAMETERS = [
    "a",
    "b",
    "d",
    "c",
    "recipe",
    "recipe_a",
    "recipe_b",
    "compiled_dims",
    "disable_ue8m0_cast",
    "alpha",
    "epilogue",
]


def fp8_gemm_nt(
    a: Any,
    b: Any,
    d: torch.Tensor,
    c: Any = None,
    recipe: Any = None,
    recipe_a: Any = None,
    recipe_b: Any = None,
    compiled_dims: str = "",
    disable_ue8m0_cast: bool = False,
    alpha: Any = None,
    epilogue: Any = None,
) -> None:
    """Checks what DeepGEMM asserts and computes in float64."""
    (codes, a_scale), (weight, b_scale) = a, b
    M, K = codes.shape
    N = weight.shape[0]
    assert codes.dtype == weight.dtype == torch.float8_e4m3fn
    assert a_scale.dtype == b_scale.dtype == torch.float32
    assert codes.is_contiguous()
    assert weight.is_contiguous()
    assert weight.shape[1] == K
    assert a_scale.shape == (M, K // 128)
    assert b_scale.shape == (-(-N // 128), K // 128)
    assert d.shape == (M, N)
    assert d.dtype == torch.bfloat16
    left = codes.double() * a_scale.double().repeat_interleave(128, 1)
    spread = b_scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)
    d.copy_(left @ (weight.double() * spread).t())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType("deep_gemm")
    module.fp8_gemm_nt = fp8_gemm_nt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deep_gemm", module)
    deep_gemm_fault.cache_clear()
    yield module
    deep_gemm_fault.cache_clear()


def subject() -> Subject:
    kernel = DeepGemmFp8BlockScaledMMKernel
    here = replace(SPEC, platforms=("cpu",), min_capability=None, max_capability=None, modules=())
    return Subject(kernel, "cpu", here, Arithmetic.of(kernel))


def test_conforms(stand_in: ModuleType) -> None:
    who = subject()
    configs = [c for c in CONFIGS if DeepGemmFp8BlockScaledMMKernel.can_implement(c)[0]]
    assert configs
    for config in configs:
        check_contract(who, config)
        check_numerics(who, config)
        check_packing(who, config)
    check_opcheck(who, configs[0])
    check_compile(who, configs[0], backend="aot_eager")
    with weighing(Target.parse("cuda:sm_90")):
        check_answers(who, CONFIGS)


def test_reasons(stand_in: ModuleType) -> None:
    def ask(target: Target) -> str:
        with weighing(target):
            return str(DeepGemmFp8BlockScaledMMKernel.is_supported()[1])

    assert ask(Target.parse("cuda:sm_90")) == "None"
    assert "this is 100" in ask(Target.parse("cuda:sm_100"))
    here = replace(Target.parse("cuda:sm_90"), is_current=True)
    assert ask(here) == "None"
    for broken, why in [
        (lambda lhs, rhs, out: None, "(lhs, rhs, out)"),
        (None, "has no fp8_gemm_nt"),
    ]:
        stand_in.fp8_gemm_nt = broken  # type: ignore[attr-defined]
        deep_gemm_fault.cache_clear()
        assert why in ask(here)
    sys.modules["deep_gemm"] = None  # type: ignore[assignment]
    deep_gemm_fault.cache_clear()
    assert "importing deep_gemm raised" in ask(here)


@pytest.mark.skipif(find_spec("deep_gemm") is None, reason="deep_gemm is not installed")
def test_the_installed_package_has_the_signature() -> None:
    deep_gemm_fault.cache_clear()
    assert deep_gemm_fault() is None
    import deep_gemm

    assert list(inspect.signature(deep_gemm.fp8_gemm_nt).parameters) == PARAMETERS


def test_the_stand_in_has_the_signature() -> None:
    assert list(inspect.signature(fp8_gemm_nt).parameters) == PARAMETERS


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("deep_gemm") is None, reason="deep_gemm is not installed")
def test_every_layer_on_the_gpu() -> None:
    check_kernel(DeepGemmFp8BlockScaledMMKernel, device="cuda", spec=SPEC)
