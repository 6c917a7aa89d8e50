"""AITER's wrappers against a stand-in that has the signatures of the package on PyPI."""

from __future__ import annotations

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
import numpy as np
import pytest
import torch
from aiter_layouts import col16_4r16, scale_words
from qcore.errors import ConfigError
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import (
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
    kMxfp4Dynamic,
)
from qcore.facts.target import Target
from qcore.kernels.base import LinearKernel
from qcore.layers import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
)
from qcore.testing import check_kernel, conformance_configs
from qcore_rocm import aiter_package, launching, plugin
from qcore_rocm.kernels.aiter_shuffle import shuffle_scale, shuffle_weight

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
    aiter_package._hipblaslt.clear()
    aiter_package.missing.cache_clear()
    aiter_package.parameters.cache_clear()
    aiter_package.tuned_shapes.cache_clear()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = aiter_stand_in.stand_in_module()
    monkeypatch.setitem(sys.modules, "aiter", module)
    forget()
    yield module
    forget()


FP8 = FP8ScaledMMLinearLayerConfig
BF16 = torch.bfloat16


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("name", SPECS)
def test_conforms(name: str, arch: str, stand_in: ModuleType) -> None:
    spec = replace(SPECS[name], platforms=("cpu",), archs=(), modules=())
    fitting = {
        "int8": [
            Int8ScaledMMLinearLayerConfig(
                static, not static, True, False, (64, 96), BF16, torch.float16
            )
            for static in (False, True)
        ],
        "fp8": [
            *(
                FP8(weight, kFp8DynamicTokenSym, (48, K), dtype, dtype)
                for weight in (kFp8StaticChannelSym, kFp8StaticTensorSym)
                for dtype in (torch.float16, BF16)
                for K in (96, 128, 80)
            ),
            *(
                FP8(kFp8StaticTensorSym, key, (48, K), dtype, dtype)
                for key in (kFp8StaticTensorSym, kFp8DynamicTensorSym)
                for dtype in (torch.float16, BF16)
                for K in (96, 128)
            ),
        ],
        "mxfp4": [
            MxFp4LinearLayerConfig(shape, kMxfp4Dynamic, dtype, BF16)
            for shape in ((32, 256), (288, 512), (64, 768))
            for dtype in (BF16, torch.float32)
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
    compare(getattr(aiter_stand_in, name), FOUND["functions"][name])
    newer = FOUND["newer"]["functions"].get(name)
    if hasattr(aiter_stand_in, f"newer_{name}"):
        compare(getattr(aiter_stand_in, f"newer_{name}"), newer)
    elif newer is not None:  # more parameters than the wheel's, behind those
        known = [p["name"] for p in FOUND["functions"][name]]
        assert [p["name"] for p in newer][: len(known)] == known


def compare(function: Any, theirs: list[dict[str, str | None]]) -> None:
    mine = list(inspect.signature(function).parameters.values())
    assert [p.name for p in mine] == [p["name"] for p in theirs]
    assert [p.default is p.empty for p in mine] == [p["default"] is None for p in theirs]
    names = tuple(p.name for p in mine)
    forms = aiter_package.FUNCTIONS[function.__name__.removeprefix("newer_")]
    assert any(names[: len(form)] == form for form in forms)


def test_shuffled_as_the_package_does() -> None:
    known_bytes = import_module("extract_aiter_signatures").known_bytes
    made = shuffle_weight(known_bytes())
    assert hashlib.sha256(bytes(made.flatten().tolist())).hexdigest() == FOUND["shuffled"]
    back = aiter_stand_in._in_order(made)
    assert torch.equal(back, known_bytes())


def test_scales_shuffled_as_the_package_does() -> None:
    known_scales = import_module("extract_aiter_signatures").known_scales
    made = shuffle_scale(known_scales())
    assert hashlib.sha256(bytes(made.flatten().tolist())).hexdigest() == FOUND["shuffled_scales"]


@pytest.mark.parametrize(("rows", "groups"), [(1, 8), (17, 9), (256, 16), (300, 24)])
def test_the_order_of_scales(rows: int, groups: int) -> None:
    plain = torch.arange(rows * groups).remainder(251).to(torch.uint8).reshape(rows, groups)
    made = shuffle_scale(plain)
    padded = np.zeros(tuple(made.shape), np.uint8)
    padded[:rows, :groups] = plain.numpy()
    assert np.array_equal(made.numpy().ravel(), scale_words(padded))


@pytest.mark.parametrize("shape", [(16, 64), (48, 192), (80, 256)])
def test_the_order_of_weights_is_hipblaslts(shape: tuple[int, int]) -> None:
    plain = torch.arange(shape[0] * shape[1]).remainder(253).to(torch.uint8).reshape(shape)
    assert np.array_equal(shuffle_weight(plain).numpy().ravel(), col16_4r16(plain.numpy()))


def test_gemm_a4w4_as_the_source_has_it_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both forms, and where only the schema of its op says which it is."""
    name = "AiterMxfp4LinearKernel"
    config = MxFp4LinearLayerConfig((96, 512), kMxfp4Dynamic, BF16, BF16)
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(7)).to(BF16)
    made = []
    for newer in (False, True):
        module = aiter_stand_in.stand_in_module(newer)
        monkeypatch.setitem(sys.modules, "aiter", module)
        forget()
        with launching.stand_in(Nobody("gfx950")):
            made.append(run(name, config, x))
    assert torch.equal(*made)
    inner = module.gemm_a4w4
    module.gemm_a4w4 = lambda *args, **kwargs: inner(*args, **kwargs)  # type: ignore[attr-defined]
    forget()
    assert aiter_package.missing("gemm_a4w4") == "aiter.gemm_a4w4 does not say what it takes"
    schema = torch.library.infer_schema(inner, mutates_args=())
    library = torch.library.Library("aiter", "FRAGMENT")
    try:
        library.define(f"gemm_a4w4{schema}")
        forget()
        assert aiter_package.missing("gemm_a4w4") is None
        with launching.stand_in(Nobody("gfx950")):
            assert torch.equal(run(name, config, x), made[0])
    finally:
        library._destroy()
        forget()


def run(name: str, config: MxFp4LinearLayerConfig, x: torch.Tensor) -> torch.Tensor:
    """The kernel's result with random codes and scales near one."""
    assert config.weight_shape is not None
    N, K = config.weight_shape
    generator = torch.Generator().manual_seed(3)
    kernel, layer = class_of(name)(config), torch.nn.Module()
    weight = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, generator=generator)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    scale = torch.randint(120, 130, (N, K // 32), dtype=torch.uint8, generator=generator)
    layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
    kernel.process_weights_after_loading(layer)
    return kernel.apply_weights(layer, x)


def test_hipblaslt_is_started_once_on_one_device(stand_in: ModuleType) -> None:
    aiter_package.start_hipblaslt(torch.device("cpu"))
    aiter_package.start_hipblaslt(torch.device("cpu"))
    assert aiter_stand_in._handles == 1
    with pytest.raises(ConfigError, match="one device of a process, cpu; this layer is on meta"):
        aiter_package.start_hipblaslt(torch.device("meta"))


def test_who_shuffles_for_hipblaslt(stand_in: ModuleType) -> None:
    """Only e4m3fnuz has an order of its own there, in tiles of 64 inputs."""
    kernel = class_of("AiterHipbMMPerTokenFp8ScaledMMLinearKernel")
    for arch, K, shuffled in (("gfx942", 128, True), ("gfx942", 96, False), ("gfx950", 128, False)):
        config = FP8(kFp8StaticChannelSym, kFp8DynamicTokenSym, (32, K), BF16, BF16)
        with launching.stand_in(Nobody(arch)):
            assert kernel(config).shuffled is shuffled  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        (
            "AiterHipbMMPerTokenFp8ScaledMMLinearKernel",
            FP8(kFp8StaticChannelSym, kFp8DynamicTokenSym, (40, 64), BF16, torch.float16),
            "N=40, K=64; multiples of 16 and of 16 only; the output is float16; hipBLASLt makes "
            "bfloat16 of scales by row",
        ),
        (
            "AiterHipbMMPerTensorFp8ScaledMMLinearKernel",
            FP8(kFp8StaticChannelSym, kFp8StaticTensorSym, (48, 64), BF16, BF16),
            "a weight scale for each output, with one for the activations",
        ),
        (
            "AiterMxfp4LinearKernel",
            MxFp4LinearLayerConfig((48, 128), None, torch.float16),
            "activations as they are; MXFP4 is implemented; N=48, K=128; multiples of 32 and of "
            "256 only; the output is float16; aiter.gemm_a4w4 makes bfloat16",
        ),
    ],
)
def test_refusals_say_why(name: str, config: Any, why: str) -> None:
    with launching.stand_in(Nobody("gfx950")):
        assert class_of(name).can_implement(config) == (False, why)


@pytest.mark.skipif(find_spec("aiter") is None, reason="amd-aiter is not installed")
def test_the_installed_package_has_the_signatures() -> None:
    extract = import_module("extract_aiter_signatures")
    spec = find_spec("aiter")
    assert spec is not None
    folder = Path((spec.submodule_search_locations or [""])[0]).parent
    found = extract.definitions({file: (folder / file).read_bytes() for file in extract.FILES})
    for name, forms in aiter_package.FUNCTIONS.items():
        names = tuple(p["name"] for p in extract.parameters(found[name]))
        assert any(names[: len(form)] == form for form in forms)


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
