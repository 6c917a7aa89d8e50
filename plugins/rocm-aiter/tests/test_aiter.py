"""AITER's wrappers against a stand-in that has the signatures of the package on PyPI."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import aiter_stand_in
import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import kFp8DynamicTokenSym, kFp8StaticChannelSym
from qcore.facts.target import Target
from qcore.kernels.base import LinearKernel
from qcore.layers import FP8ScaledMMLinearLayerConfig, Int8ScaledMMLinearLayerConfig
from qcore.testing import check_kernel, conformance_configs
from qcore_rocm import aiter_package, launching, plugin
from qcore_rocm.kernels.aiter_shuffle import shuffle_weight

SPECS = {spec.name: spec for spec in plugin.qcore_kernels() if spec.backend == "aiter"}
FOUND = json.loads((Path(__file__).parent / "data" / "aiter_signatures.json").read_text())
sys.path.append(str(Path(__file__).parent / "tools"))


def class_of(name: str) -> type[LinearKernel[Any]]:
    kernel: type[LinearKernel[Any]] = getattr(
        import_module(SPECS[name].entry.partition(":")[0]), name
    )
    return kernel


@dataclass
class Nobody:
    """In place of a GPU of an architecture; AITER's wrappers launch nothing themselves."""

    arch: str | None

    def launch(self, *args: object) -> None:
        raise AssertionError(args)


def forget() -> None:
    aiter_package.missing.cache_clear()
    aiter_package.tuned_shapes.cache_clear()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = aiter_stand_in.stand_in_module()
    monkeypatch.setitem(sys.modules, "aiter", module)
    forget()
    yield module
    forget()


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("name", SPECS)
def test_conforms(name: str, arch: str, stand_in: ModuleType) -> None:
    spec = replace(SPECS[name], platforms=("cpu",), archs=(), modules=())
    fitting = {
        "int8": [
            Int8ScaledMMLinearLayerConfig(
                static, not static, True, False, (64, 96), torch.bfloat16, torch.float16
            )
            for static in (False, True)
        ],
        "fp8": [
            FP8ScaledMMLinearLayerConfig(
                kFp8StaticChannelSym, kFp8DynamicTokenSym, (48, 96), dtype, dtype
            )
            for dtype in (torch.float16, torch.bfloat16)
        ],
    }
    kind = spec.kernel_type
    configs = [*conformance_configs(kind), *fitting.get(kind, [])]
    with launching.stand_in(Nobody(arch)):
        # All checks once; with the other kind of 8-bit floats the numbers.
        checks = None if arch == "gfx942" else ("check_numerics", "check_packing")
        report = check_kernel(class_of(name), spec=spec, configs=configs, checks=checks)
    assert report.claimed >= 3


@pytest.mark.parametrize("name", aiter_package.FUNCTIONS)
def test_the_stand_in_has_the_signatures(name: str) -> None:
    theirs = FOUND["functions"][name]
    mine = list(inspect.signature(getattr(aiter_stand_in, name)).parameters.values())
    assert [p.name for p in mine] == [p["name"] for p in theirs]
    assert [p.default is p.empty for p in mine] == [p["default"] is None for p in theirs]
    called = aiter_package.FUNCTIONS[name]
    assert tuple(p.name for p in mine)[: len(called)] == called


def test_shuffled_as_the_package_does() -> None:
    known_bytes = import_module("extract_aiter_signatures").known_bytes
    made = shuffle_weight(known_bytes())
    assert hashlib.sha256(bytes(made.flatten().tolist())).hexdigest() == FOUND["shuffled"]
    back = aiter_stand_in._in_order(made)
    assert torch.equal(back, known_bytes())


@pytest.mark.skipif(find_spec("aiter") is None, reason="amd-aiter is not installed")
def test_the_installed_package_has_the_signatures() -> None:
    spec = find_spec("aiter")
    assert spec is not None
    folder = Path((spec.submodule_search_locations or [""])[0])
    tree = ast.parse((folder / "ops" / "gemm_op_a8w8.py").read_text(encoding="utf-8"))
    names = {
        node.name: tuple(arg.arg for arg in node.args.args)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    for name, wanted in aiter_package.FUNCTIONS.items():
        assert names[name][: len(wanted)] == wanted


def test_reasons(stand_in: ModuleType) -> None:
    kernel = class_of("AiterFp8BlockScaledMMKernel")
    here = replace(Target.parse("rocm:gfx942"), is_current=True)

    def ask(target: Target) -> str:
        with weighing(target):
            return str(kernel.is_supported()[1])

    assert ask(Target.parse("rocm:gfx942")) == "None"
    assert "built without ROCm" in ask(here)
    with launching.stand_in(Nobody("gfx942")):
        assert ask(here) == "None"
        stand_in.gemm_a8w8_blockscale = lambda a, b: None  # type: ignore[attr-defined]
        forget()
        assert "takes (a, b)" in ask(here)
        del stand_in.gemm_a8w8_blockscale
        forget()
        assert "has no gemm_a8w8_blockscale" in ask(here)


def test_an_import_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "raise RuntimeError('ROCm version file not found')\n"
    (tmp_path / "aiter.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aiter", raising=False)
    forget()
    try:
        assert aiter_package.missing("gemm_a8w8_CK") == (
            "importing aiter raised RuntimeError: ROCm version file not found"
        )
    finally:
        forget()


def test_tuned_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are read without importing it."""
    configs = tmp_path / "aiter" / "configs"
    (configs / "model_configs").mkdir(parents=True)
    (tmp_path / "aiter" / "__init__.py").write_text("raise RuntimeError\n")
    for table, wanted in FOUND["tables"].items():
        lines = [",".join(wanted["columns"])]
        values = {"cu_num": "304", "M": "1", "N": "4096", "K": "8192"}
        values["q_dtype_w"] = "torch.float8_e4m3fnuz"
        lines.append(",".join(values.get(column, "0") for column in wanted["columns"]))
        (configs / table).write_text("\n".join(lines) + "\n")
    (configs / "model_configs" / "a8w8_bpreshuffle_tuned_gemm_x.csv").write_text(
        "cu_num,M,N,K,q_dtype_w\n80,1,512,7168,torch.int8\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aiter", raising=False)
    forget()
    try:
        assert aiter_package.tuned_shapes("gemm_a8w8_CK") == {(4096, 8192)}
        both = aiter_package.tuned_shapes("gemm_a8w8_bpreshuffle")
        assert both == {(4096, 8192), (512, 7168)}
        kernel = class_of("AiterPreshuffledPerTokenFp8ScaledMMLinearKernel")
        config = FP8ScaledMMLinearLayerConfig(
            kFp8StaticChannelSym, kFp8DynamicTokenSym, (4096, 8192), torch.bfloat16, torch.bfloat16
        )
        for target, tuned in (("rocm:gfx942", True), ("rocm:gfx950", False)):
            with weighing(Target.parse(target)):
                able, reason = kernel.can_implement(config)
                assert able is tuned, reason
        other = replace(config, weight_shape=(512, 7168))
        with weighing(Target.parse("rocm:gfx942")):
            reason = str(kernel.can_implement(other)[1])
        assert reason == "aiter has no tuned gemm_a8w8_bpreshuffle for N=512, K=7168"
    finally:
        forget()
