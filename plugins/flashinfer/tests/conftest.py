"""Skip, with a reason, what this machine cannot run; the stand-in for FlashInfer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from qcore_flashinfer import library

sys.path.append(str(Path(__file__).parent))  # for what several test modules share


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = library.fault() or library.here_refusal("cublas")
    for item in items:
        if reason is not None and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """A function that puts a stand-in of a release in FlashInfer's place, or (None) nothing."""
    from stand_in import KNOWN, members

    def put(release: str | None) -> None:
        library.fault.cache_clear()
        if release is None:
            for name in ("flashinfer", "flashinfer.gemm"):
                monkeypatch.delitem(sys.modules, name, raising=False)
            monkeypatch.setattr(library, "find_spec", lambda name: None)
            monkeypatch.setattr(library, "installed_version", lambda: None)
            return
        gemm = ModuleType("flashinfer.gemm")
        module = ModuleType("flashinfer")
        for name, spec in (("flashinfer", module), ("flashinfer.gemm", gemm)):
            spec.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, spec)
        for name, value in members(release).items():
            setattr(gemm if name == "fp8_blockscale_gemm_sm90" else module, name, value)
        module.gemm = gemm  # type: ignore[attr-defined]
        monkeypatch.setattr(library, "installed_version", lambda: KNOWN[release]["version"])

    yield put
    monkeypatch.undo()
    library.fault.cache_clear()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(0)


@pytest.fixture
def deep_gemm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A stand-in for DeepGEMM with the names of sgl-deep-gemm 0.2.5; the rows of its calls."""
    from qcore.kernels.deep_gemm import deep_gemm_fault

    rows: list[int] = []

    def fp8_gemm_nt(a: Any, b: Any, d: torch.Tensor, c: Any = None, recipe: Any = None) -> None:
        (codes, a_scale), (weight, b_scale) = a, b
        (M, K), N = codes.shape, weight.shape[0]
        assert codes.dtype == weight.dtype == torch.float8_e4m3fn
        assert a_scale.dtype == b_scale.dtype == torch.float32
        assert a_scale.shape == (M, K // 128)
        assert b_scale.shape == (-(-N // 128), K // 128)
        assert d.shape == (M, N)
        assert d.dtype == torch.bfloat16
        for tensor in (codes, weight, b_scale):
            assert tensor.is_contiguous()
        rows.append(M)
        left = codes.double() * a_scale.double().repeat_interleave(128, 1)
        spread = b_scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)
        d.copy_(left @ (weight.double() * spread).t())

    module = ModuleType("deep_gemm")
    module.__spec__ = ModuleSpec("deep_gemm", None)
    module.fp8_gemm_nt = fp8_gemm_nt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deep_gemm", module)
    deep_gemm_fault.cache_clear()
    yield rows
    deep_gemm_fault.cache_clear()
