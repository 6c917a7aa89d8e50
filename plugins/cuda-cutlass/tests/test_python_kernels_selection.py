"""The kernels without compiled code are reached: which of them stands where, by architecture."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import (
    kFp8Dynamic128Sym,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)
from qcore.facts.scalar_type import scalar_types
from qcore.facts.target import Target
from qcore.layers import (
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.registry import Evidence
from qcore.selection import select
from qcore.settings import Settings
from qcore.testing import Subject, conformance_configs, isolated_registry
from qcore.testing.answers import check_answers
from qcore_cuda import plugin

BF16, F16 = torch.bfloat16, torch.float16
SHAPE = (256, 512)
COMPILED = frozenset(
    s.name
    for s in plugin.qcore_kernels()
    if s.backend in ("cutlass", "exllama", "marlin", "qcore_cuda")
)


def fp8(weight: object, inputs: object, out: torch.dtype = BF16) -> MMLinearLayerConfig:
    return FP8ScaledMMLinearLayerConfig(weight, inputs, SHAPE, BF16, out)  # type: ignore[arg-type]


LAYERS: dict[str, MMLinearLayerConfig] = {
    "mp": MPLinearLayerConfig((512, 256), (512, 256), scalar_types.uint4b8, F16, 128, False),
    "int8": Int8ScaledMMLinearLayerConfig(False, True, False, False, SHAPE, BF16, BF16),
    "tensor": fp8(kFp8StaticTensorSym, kFp8DynamicTensorSym),
    "token": fp8(kFp8StaticChannelSym, kFp8DynamicTokenSym),
    "token f16": fp8(kFp8StaticChannelSym, kFp8DynamicTokenSym, F16),
    "block": Fp8BlockScaledMMLinearLayerConfig(
        kFp8Static128BlockSym, kFp8Dynamic128Sym, SHAPE, BF16, BF16
    ),
    "nvfp4": NvFp4LinearLayerConfig(SHAPE, None, BF16),
    "w4a4": NvFp4LinearLayerConfig(SHAPE, input_dtype=BF16),
    "mxfp4": MxFp4LinearLayerConfig(SHAPE, None, BF16),
    "mxfp8": Mxfp8LinearLayerConfig(SHAPE, input_dtype=BF16),
}
ALL_TRITON = {
    "mp": "TritonW4A16LinearKernel",
    "int8": "TritonInt8ScaledMMLinearKernel",
    "nvfp4": "TritonNvFp4LinearKernel",
    "w4a4": "TritonNvFp4LinearKernel",
    "mxfp4": "TritonMxFp4LinearKernel",
    "mxfp8": "TritonMxfp8LinearKernel",
}
WITH_FP8 = {
    **ALL_TRITON,
    "tensor": "PerTensorTorchFP8ScaledMMLinearKernel",
    "token": "ChannelWiseTorchFP8ScaledMMLinearKernel",
    "token f16": "ChannelWiseTorchFP8ScaledMMLinearKernel",
    "block": "TritonFp8BlockScaledMMKernel",
}
ROWS = {**WITH_FP8, "token": "RowWiseTorchFP8ScaledMMLinearKernel"}


@pytest.mark.parametrize(
    ("arch", "chosen"),
    [
        (75, {"mp": "HummingLinearKernel"}),
        (80, ALL_TRITON),
        (89, WITH_FP8),
        (90, {**ROWS, "block": "DeepGemmFp8BlockScaledMMKernel"}),
        (100, {**ROWS, "w4a4": "FbgemmNvFp4LinearKernel"}),
        (120, ROWS),
    ],
)
def test_what_runs_where_compiled_kernels_do_not(arch: int, chosen: dict[str, str]) -> None:
    settings = Settings(disabled_kernels=COMPILED)
    with isolated_registry(plugin) as registry:
        assert not registry.failures
        for name, config in LAYERS.items():
            decision = select(config, f"cuda:sm_{arch}", settings=settings)
            found = decision.chosen
            assert found is not None
            expected = chosen.get(name, "")
            assert found.name == expected if expected else found.kernel.spec.priority == 0
            for candidate in decision.candidates:
                assert candidate.chosen or not candidate.tried or candidate.reason


def test_compiled_kernels_go_first() -> None:
    specs = {s.name: s for s in plugin.qcore_kernels()}
    for name, spec in specs.items():
        if name in COMPILED and spec.evidence is Evidence.EXECUTED:
            assert all(
                spec.priority > other.priority
                for other in specs.values()
                if other.kernel_type == spec.kernel_type and other.name not in COMPILED
            )


@pytest.mark.parametrize("spec", plugin.qcore_kernels(), ids=lambda spec: spec.name)
def test_declarations_agree_with_the_classes(spec: object) -> None:
    from importlib import import_module

    module, _, name = spec.entry.partition(":")  # type: ignore[attr-defined]
    kernel = getattr(import_module(module), name)
    with weighing(Target.parse("cuda:sm_90")):
        assert kernel.get_min_capability() == spec.min_capability  # type: ignore[attr-defined]
        if name not in COMPILED:
            configs = conformance_configs(kernel.kernel_type)
            check_answers(Subject(kernel, "cuda", spec), configs)  # type: ignore[arg-type]


def test_answering_and_packing_import_no_triton() -> None:
    code = (
        "import sys, importlib\n"
        "import qcore.triton.int8, qcore.triton.fp8_block, qcore.triton.w4a16\n"
        "import qcore.triton.block_formats\n"
        "assert 'triton.language' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
