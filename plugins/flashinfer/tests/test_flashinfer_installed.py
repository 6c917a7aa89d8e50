"""The FlashInfer that is installed: its signatures, its own checks of arguments, its shuffle.

Needs no GPU. A change of a signature makes the first test fail: look at what changed, then run
``signatures.py``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import kMxfp4Dynamic
from qcore.facts.target import Target
from qcore.kernels import process_weights
from qcore.layers import MxFp4LinearLayerConfig, Mxfp8LinearLayerConfig, NvFp4LinearLayerConfig
from qcore.testing.tensors import make_layer, random_tensors
from qcore_flashinfer import library, ops, plugin
from qcore_flashinfer.kernels import mxfp4, mxfp8, nvfp4
from qcore_flashinfer.layouts import swizzle_128x4
from signatures import FUNCTIONS, described, installed
from stand_in import KNOWN

WHY = library.fault()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))
RELEASE = ".".join((library.installed_version() or "").split(".")[:2])
BF16 = torch.bfloat16


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_signature_is_known(name: str) -> None:
    if RELEASE not in KNOWN:
        pytest.fail(f"flashinfer-python {RELEASE} is not in signatures.json: run signatures.py")
    function = getattr(import_module(FUNCTIONS[name]), name)
    assert described(function) == KNOWN[RELEASE]["functions"][name]


def test_what_is_called_is_what_is_written_down() -> None:
    assert installed().keys() == KNOWN[RELEASE]["functions"].keys()


@pytest.mark.parametrize("spec", plugin.qcore_kernels(), ids=lambda spec: spec.name)
def test_no_class_asks_for_what_the_release_lacks(spec: Any) -> None:
    kernel = getattr(import_module(spec.entry.partition(":")[0]), spec.name)
    parts = [part for _, part in getattr(kernel, "parts", ((None, kernel),))]
    for part in parts:
        if hasattr(part, "parameters"):
            assert library.signature_fault(part.function, part.parameters) is None


def test_where_the_kernels_run() -> None:
    """Asked of the package; b12x and trtllm each where the others are not."""
    able: dict[int, set[str]] = {}
    for arch in (80, 89, 90, 100, 120):
        with weighing(Target.parse(f"cuda:sm_{arch}")):
            able[arch] = {
                spec.name
                for spec in plugin.qcore_kernels()
                if getattr(import_module(spec.entry.partition(":")[0]), spec.name).is_supported()[0]
            }
    assert able[80] == set()
    assert able[89] == {"FlashInferFP8ScaledMMLinearKernel"}
    assert "FlashInferFp8BlockScaledMMKernel" in able[90]
    assert "FlashInferTrtllmNvFp4LinearKernel" in able[100] - able[120]
    assert "FlashInferB12xNvFp4LinearKernel" in able[120] - able[100]
    assert "FlashInferMxFp4LinearKernel" in able[100] - able[120]
    assert {"FlashInferCutlassNvFp4LinearKernel", "FlashInferCutlassMxfp8LinearKernel"} <= (
        able[100] & able[120]
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Arguments of the last call of each function, as the ops make them; none is computed."""
    kept: dict[str, dict[str, Any]] = {}

    def call(name: str, *args: torch.Tensor, **keywords: Any) -> torch.Tensor:
        names = list(KNOWN[RELEASE]["functions"][name]["parameters"])
        kept[name] = {**dict(zip(names, args, strict=False)), **keywords}
        return torch.zeros(args[0].shape[0], args[1].shape[1], dtype=keywords["out_dtype"])

    monkeypatch.setattr(ops, "_call", call)
    return kept


def run(kernel_class: Any, config: Any, M: int = 9) -> None:
    kernel = kernel_class.from_config(config)
    layer = make_layer(config, random_tensors(config))
    process_weights(kernel, layer)
    out = kernel.apply_weights(layer, torch.randn(M, config.weight_shape[1]).to(BF16))
    assert out.shape == (M, config.weight_shape[0])


SHAPES = [(128, 256), (72, 192), (384, 512)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("which", ["Cutlass", "Cudnn", "B12x", "Trtllm"])
def test_flashinfer_takes_nvfp4s_arguments(calls: Any, which: str, shape: Any) -> None:
    """By the checks that it makes itself before it multiplies."""
    kernel = getattr(nvfp4, f"FlashInfer{which}NvFp4LinearKernel")
    run(kernel, NvFp4LinearLayerConfig(shape, input_dtype=BF16))
    base = import_module("flashinfer.gemm.gemm_base")
    assert base._check_mm_fp4_problem_size(**calls["mm_fp4"])
    if which in ("Cutlass", "Trtllm"):  # the others look for a GPU and other packages
        assert getattr(base, f"_{which.lower()}_gemm_fp4_requirement")(**calls["mm_fp4"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flashinfer_takes_mxfp4s_arguments(calls: Any, shape: Any) -> None:
    config = MxFp4LinearLayerConfig(shape, kMxfp4Dynamic, BF16)
    run(mxfp4.FlashInferMxFp4LinearKernel, config)
    base = import_module("flashinfer.gemm.gemm_base")
    assert base._check_mm_fp4_problem_size(**calls["mm_fp4"])


@pytest.mark.parametrize("shape", [*SHAPES, (32, 32)], ids=str)
@pytest.mark.parametrize("M", [1, 9, 130])
def test_flashinfer_takes_mxfp8s_arguments(calls: Any, shape: Any, M: int) -> None:
    run(
        mxfp8.FlashInferCutlassMxfp8LinearKernel,
        Mxfp8LinearLayerConfig(shape, input_dtype=BF16),
        M,
    )
    base = import_module("flashinfer.gemm.gemm_base")
    assert base._check_mm_mxfp8_problem_size(**calls["mm_mxfp8"])


def test_the_shuffle_of_weights_and_scales_is_flashinfers(generator: torch.Generator) -> None:
    """FlashInfer shuffles scales by rows as it does weights, and lays them in tiles afterwards."""
    utils = import_module("flashinfer.utils")
    scale = torch.randint(0, 255, (256, 8), dtype=torch.uint8, generator=generator)
    rows = utils.get_shuffle_matrix_sf_a_row_indices(scale, 128)
    expected = swizzle_128x4(scale[rows])
    config = NvFp4LinearLayerConfig((256, 128), input_dtype=BF16)
    kernel = nvfp4.FlashInferTrtllmNvFp4LinearKernel.from_config(config)
    padded = torch.nn.functional.pad(scale, (0, 256 // 16 - 8))
    assert torch.equal(kernel.packed_scale(scale, 16), swizzle_128x4(padded[rows]))
    assert expected.shape == (256, 8)
