"""What the plugin declares, and what a person is told."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import (
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
    kMxfp4Dynamic,
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
)
from qcore.registry.spec import Evidence
from qcore_rocm import aiter_package, library, plugin

BF16 = torch.bfloat16
SPECS = plugin.qcore_kernels()
MP = MPLinearLayerConfig((4096, 4096), (4096, 4096), scalar_types.uint4b8, BF16, 128, False)
INT8 = Int8ScaledMMLinearLayerConfig(False, True, True, False, (4096, 4096), BF16, BF16)
FP8 = FP8ScaledMMLinearLayerConfig(
    kFp8StaticChannelSym, kFp8DynamicTokenSym, (4096, 4096), BF16, BF16
)
FP8_TENSOR = FP8ScaledMMLinearLayerConfig(
    kFp8StaticTensorSym, kFp8StaticTensorSym, (4096, 4096), BF16, BF16
)
MXFP4 = MxFp4LinearLayerConfig((4096, 4096), kMxfp4Dynamic, BF16, BF16)
BLOCK = Fp8BlockScaledMMLinearLayerConfig(
    kFp8Static128BlockSym, kFp8Dynamic128Sym, (4096, 4096), BF16, BF16
)


def chosen(config: MMLinearLayerConfig, target: str, backend: str | None = None) -> str | None:
    """The first kernel of the plugin that takes the layer, as selection would ask."""
    with weighing(Target.parse(target)):
        for spec in sorted(SPECS, key=lambda spec: -spec.priority):
            if spec.kernel_type != config.kernel_type or spec.backend != (backend or spec.backend):
                continue
            if spec.archs and target.partition(":")[2] not in spec.archs:
                continue
            kernel = getattr(import_module(spec.entry.partition(":")[0]), spec.name)
            if kernel.is_supported()[0] and kernel.can_implement(config)[0]:
                return spec.name
    return None


@pytest.mark.skipif(not library.compiled_archs(), reason=library.built())
@pytest.mark.parametrize(
    ("config", "target", "name"),
    [
        (MP, "rocm:gfx90a", "HipW4A16LinearKernel"),
        (MP, "rocm:gfx1201", "HipW4A16LinearKernel"),
        (MP, "rocm:gfx1100", None),
        (INT8, "rocm:gfx90a", "HipInt8ScaledMMLinearKernel"),
        (INT8, "rocm:gfx942", "AiterInt8ScaledMMLinearKernel"),
        (FP8, "rocm:gfx90a", None),
        (FP8, "rocm:gfx1201", "HipFP8ScaledMMLinearKernel"),
        (FP8_TENSOR, "rocm:gfx942", "HipFP8ScaledMMLinearKernel"),
        (MXFP4, "rocm:gfx942", "TritonMxFp4LinearKernel"),
        (MXFP4, "rocm:gfx950", "AiterMxfp4LinearKernel"),
        (BLOCK, "rocm:gfx942", "AiterFp8BlockScaledMMKernel"),
        (BLOCK, "rocm:gfx1201", "HipFp8BlockScaledMMKernel"),
    ],
)
def test_chosen(config: MMLinearLayerConfig, target: str, name: str | None) -> None:
    if target not in ("rocm:gfx1100",) and target.partition(":")[2] not in library.compiled_archs():
        pytest.skip(f"no code object for {target}")
    assert chosen(config, target) == name


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (FP8, "AiterPreshuffledPerTokenFp8ScaledMMLinearKernel"),
        (replace(FP8, weight_shape=(80, 80)), "AiterPerTokenFp8ScaledMMLinearKernel"),
        (FP8_TENSOR, "AiterHipbMMPerTensorFp8ScaledMMLinearKernel"),
        (
            replace(FP8, weight_quant_key=kFp8StaticTensorSym),
            "AiterHipbMMPerTokenFp8ScaledMMLinearKernel",
        ),
    ],
)
def test_chosen_of_aiter(config: MMLinearLayerConfig, name: str) -> None:
    """hipBLASLt where AITER's own products do not do."""
    assert chosen(config, "rocm:gfx942", "aiter") == name


def test_labels() -> None:
    """Nothing here has run on an AMD GPU."""
    assert {spec.evidence for spec in SPECS} == {Evidence.STAND_IN, Evidence.CONTRACT}
    assert all(spec.archs for spec in SPECS)


def test_declared_archs() -> None:
    for spec in SPECS:
        if spec.backend == "qcore_rocm":
            archs = library.FP8_ARCHS if "fp8" in spec.kernel_type else library.ARCHS
            assert spec.archs == archs


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = plugin.qcore_doctor()
    if torch.version.hip is None:
        assert not line.ok
        assert "built without ROCm" in line.text
    monkeypatch.setattr(library, "unusable_here", lambda: None)
    monkeypatch.setattr(library, "compiled_archs", lambda: ("gfx942",))
    monkeypatch.setattr(aiter_package, "installed", lambda: True)
    monkeypatch.setattr(aiter_package, "missing", lambda name: "importing aiter raised OSError: x")
    own, aiter = plugin.qcore_doctor()
    assert own.ok
    assert own.text.endswith("compiled for gfx942")
    assert (aiter.ok, aiter.text) == (False, "importing aiter raised OSError: x")
