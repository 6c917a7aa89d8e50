"""Humming's wrappers against a stand-in with the signatures of a release."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from humming_stand_in import KNOWN, modules
from installed_signatures import parameters_in_source
from qcore.errors import KernelRefusedError, WeightError
from qcore.facts.current_platform import weighing
from qcore.facts.scalar_type import ScalarType, scalar_types
from qcore.facts.target import Target
from qcore.kernels import process_weights
from qcore.layers import FP8ScaledMMLinearLayerConfig, MPLinearLayerConfig
from qcore.testing import (
    Arithmetic,
    Subject,
    check_claimed,
    check_kernel,
    check_numerics,
    conformance_configs,
    make_layer,
)
from qcore.testing.answers import check_answers
from qcore_cuda import plugin
from qcore_cuda.kernels import humming_package, humming_support
from qcore_cuda.kernels.humming import HummingLinearKernel
from qcore_cuda.kernels.humming_fp8 import HummingFP8ScaledMMLinearKernel

KERNELS: tuple[Any, ...] = (HummingLinearKernel, HummingFP8ScaledMMLinearKernel)
SPECS = {s.name: s for s in plugin.qcore_kernels() if s.backend == "humming"}
BF16, F16 = torch.bfloat16, torch.float16

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    made = modules()
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(humming_support, "on_gpu", lambda tensor: True)
    humming_package.fault.cache_clear()
    yield made
    humming_package.fault.cache_clear()


def subject(kernel: Any) -> Subject:
    here = replace(SPECS[kernel.__name__], platforms=("cpu",), min_capability=None, modules=())
    return Subject(kernel, "cpu", here, Arithmetic.of(kernel))


def mp(weight_type: ScalarType, K: int, N: int, group: int, **other: Any) -> MPLinearLayerConfig:
    zero_points = other.pop("zero_points", False)
    act_type = other.pop("act_type", BF16)
    return MPLinearLayerConfig((K, N), (K, N), weight_type, act_type, group, zero_points, **other)


@each_kernel
def test_conforms(kernel: Any, stand_in: dict[str, ModuleType]) -> None:
    shown = f"a stand-in with the signatures of {KNOWN['release']}"
    check_claimed(subject(kernel), conformance_configs(kernel.kernel_type), "contract", shown)


@each_kernel
def test_answers_are_in_words(kernel: Any, stand_in: dict[str, ModuleType]) -> None:
    for arch in (75, 90):
        with weighing(Target.parse(f"cuda:sm_{arch}")):
            check_answers(subject(kernel), conformance_configs(kernel.kernel_type))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(
    ("K", "N", "group"), [(256, 256, 128), (200, 72, 64), (136, 8, 16), (104, 264, -1), (8, 8, 16)]
)
@pytest.mark.parametrize("kind", ["biased", "zero points", "neither"])
def test_every_width_shape_and_kind_of_zero(
    kind: str, K: int, N: int, group: int, bits: int, stand_in: dict[str, ModuleType]
) -> None:
    bias = 1 << (bits - 1) if kind == "biased" else 0
    config = mp(ScalarType.uint(bits, bias), K, N, group, zero_points=kind == "zero points")
    check_numerics(subject(HummingLinearKernel), config)


@pytest.mark.parametrize("kind", [scalar_types.int4, scalar_types.int8])
def test_signed_codes(kind: ScalarType, stand_in: dict[str, ModuleType]) -> None:
    check_numerics(subject(HummingLinearKernel), mp(kind, 256, 64, 32, act_type=F16))


def test_an_input_that_begins_anywhere(stand_in: dict[str, ModuleType]) -> None:
    config = mp(scalar_types.uint4b8, 64, 64, 32)
    built = subject(HummingLinearKernel).build(config)
    memory = torch.randn(5 * 64 + 1).to(BF16)
    x = memory[1:].reshape(5, 64)
    assert x.data_ptr() % 16
    assert torch.equal(built.apply(x), built.apply(x.clone()))


def test_what_it_refuses(stand_in: dict[str, ModuleType]) -> None:
    u4 = scalar_types.uint4b8
    for config, why in [
        (mp(u4, 256, 64, 32, has_g_idx=True), "g_idx"),
        (mp(u4, 256, 64, 96), "group_size=96"),
        (mp(u4, 256, 64, 8), "group_size=8"),
        (mp(u4, 250, 64, 32), "K=250"),
        (mp(u4, 256, 60, 32), "N=60"),
        (mp(u4, 256, 64, 32, act_type=torch.float32), "activations in float32"),
        (mp(u4, 256, 64, 32, out_type=torch.float32), "results in float32"),
        (mp(u4, 256, 64, 32, act_type=torch.int8, out_type=BF16), "activations in int8"),
    ]:
        assert why in str(HummingLinearKernel.can_implement(config)[1])
        with pytest.raises(KernelRefusedError, match=why):
            HummingLinearKernel(config)
    with weighing(Target.parse("cuda:sm_75")):
        assert "bfloat16" in str(HummingLinearKernel.can_implement(mp(u4, 256, 64, 32))[1])
        assert HummingLinearKernel.can_implement(mp(u4, 256, 64, 32, act_type=F16))[0]


def test_reasons_of_the_package(
    stand_in: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert humming_package.fault() is None
    assert "this is 70" in str(HummingLinearKernel.is_supported(70)[1])
    here = replace(Target.parse("cuda:sm_90"), is_current=True)
    if torch.version.cuda is None:
        with weighing(here):
            assert "without CUDA" in str(HummingLinearKernel.is_supported()[1])
    monkeypatch.setattr(humming_package, "here_fault", humming_package.fault)

    def ask() -> str:
        humming_package.fault.cache_clear()
        with weighing(here):
            return str(HummingLinearKernel.is_supported()[1])

    assert ask() == "None"
    ops: Any = stand_in["humming.ops"]
    with monkeypatch.context() as patch:
        patch.setattr(ops, "humming_gemm", lambda layer_config, a, b: None)
        assert "takes no inputs, weight" in ask()
        patch.delattr(ops, "humming_gemm")
        assert "has no humming.ops.humming_gemm" in ask()
    monkeypatch.setitem(sys.modules, "humming.schema", None)
    assert "importing humming raised ModuleNotFoundError" in ask()


def test_a_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        @staticmethod
        def signature() -> str:
            raise RuntimeError("no nvcc anywhere")

    runtime = ModuleType("humming.jit.runtime")
    runtime.KernelRuntime = type(  # type: ignore[attr-defined]
        "KernelRuntime", (), {"_get_compiler": staticmethod(lambda: Found)}
    )
    humming_package.compiler_fault.cache_clear()
    monkeypatch.setitem(sys.modules, "humming.jit.runtime", None)
    assert humming_package.compiler_fault() is None
    humming_package.compiler_fault.cache_clear()
    monkeypatch.setitem(sys.modules, "humming", ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.jit", ModuleType("humming.jit"))
    monkeypatch.setitem(sys.modules, "humming.jit.runtime", runtime)
    assert "no nvcc anywhere" in str(humming_package.compiler_fault())
    humming_package.compiler_fault.cache_clear()


def test_packing_that_fails_leaves_the_layer(
    stand_in: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcore.testing.tensors import random_tensors

    config = mp(scalar_types.uint4b8, 64, 64, 32)
    layer = make_layer(config, random_tensors(config), device="cpu")
    before = {name: tensor.clone() for name, tensor in layer.named_parameters()}
    kernel = HummingLinearKernel.from_config(config)
    with monkeypatch.context() as patch:
        patch.setattr(humming_support, "on_gpu", lambda tensor: tensor.is_cuda)
        with pytest.raises(WeightError, match="on cpu"):
            process_weights(kernel, layer)
    ops: Any = stand_in["humming.ops"]

    def broken(**given: Any) -> None:
        raise RuntimeError("nvrtc: error")

    monkeypatch.setattr(ops, "humming_gemm", broken)
    with pytest.raises(KernelRefusedError, match="nvrtc: error"):
        process_weights(kernel, layer)
    after = dict(layer.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_fp8_refuses_what_it_would_round_badly(stand_in: dict[str, ModuleType]) -> None:
    from qcore.facts.quant_key import (
        kFp8DynamicTokenSym,
        kFp8StaticChannelSym,
        kFp8StaticTensorSym,
    )

    def ask(weight: Any, inputs: Any, dtype: torch.dtype) -> str:
        config = FP8ScaledMMLinearLayerConfig(weight, inputs, (64, 64), dtype, dtype)
        return str(HummingFP8ScaledMMLinearKernel.can_implement(config)[1])

    assert ask(kFp8StaticChannelSym, None, BF16) == "None"
    assert ask(kFp8StaticTensorSym, None, F16) == "None"
    assert "scales of outputs beside float16" in ask(kFp8StaticChannelSym, None, F16)
    assert "quantized activations" in ask(kFp8StaticChannelSym, kFp8DynamicTokenSym, BF16)


def test_what_is_called_is_in_the_release() -> None:
    for entry, parameters in humming_package.CALLED.items():
        assert set(parameters) <= set(KNOWN["parameters"][entry])
    assert KNOWN["release"].endswith(humming_package.CHECKED)


@pytest.mark.skipif(find_spec("humming") is None, reason="humming-kernels is not installed")
def test_the_installed_package_has_the_signatures() -> None:
    found = {entry: parameters_in_source(entry) for entry in KNOWN["parameters"]}
    assert found == KNOWN["parameters"]


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("humming") is None, reason="humming-kernels is not installed")
@each_kernel
def test_every_layer_on_the_gpu(kernel: Any) -> None:
    check_kernel(kernel, device="cuda", spec=SPECS[kernel.__name__])
