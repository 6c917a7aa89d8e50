"""Whole models on the GPU: each scheme on each kernel that claims its layers, beside the CPU.

The models are made and quantized here. QCORE_TEST_CHECKPOINTS may name a folder of checkpoints that
other tools wrote (see core/tests/models/test_real_checkpoints.py); those are run too.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import qcore
import torch
from qcore.errors import NoKernelError
from qcore.facts.platform import Platform
from qcore.quantize import quantize_checkpoint
from qcore.registry import get_registry

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

# Scheme, the kernel type of its layers.
SCHEMES = {
    "int4-g128": "mp",
    "int4-asym-g32": "mp",
    "int2-g32": "mp",
    "int8-channel": "mp",
    "int8": "int8",
    "fp8": "fp8",
    "fp8-tensor": "fp8",
    "fp8-weight-only": "fp8",
    "fp8-block": "fp8_block",
    "fp8-block-weight-only": "fp8_block",
    "mxfp8": "mxfp8",
    "mxfp8-weight-only": "mxfp8",
    "mxfp4": "mxfp4",
    "mxfp4-weight-only": "mxfp4",
    "nvfp4-weight-only": "nvfp4",
}
CHECKPOINTS = {
    "ar-awq-g128": "mp",
    "gptqmodel-g128": "mp",
    "gptqmodel-g32-act": "mp",
    "ct-w4a16": "mp",
    "ct-w4a16-asym": "mp",
    "ct-w8a8": "int8",
    "ct-fp8-dynamic": "fp8",
    "ct-fp8-block": "fp8_block",
    "ct-mxfp4a16": "mxfp4",
    "ct-nvfp4a16": "nvfp4",
}
ROOT = Path(os.environ.get("QCORE_TEST_CHECKPOINTS", "/nonexistent"))


def _kernels(kernel_type: str) -> list[str]:
    return [
        kernel.name
        for kernel in get_registry().kernels()
        if kernel.spec.kernel_type == kernel_type and Platform.CUDA in kernel.spec.platforms
    ]


def _cases(kinds: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, kernel) for name, kind in kinds.items() for kernel in _kernels(kind)]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in qcore.settings.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    """From a scheme to the folder of a small Llama that was quantized so."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "float")

    @cache
    def make(scheme):
        quantize_checkpoint(folder / "float", folder / scheme, scheme=scheme)
        return folder / scheme

    return make


def _logits(model, device):
    ids = torch.arange(96, device=device).reshape(2, 48) * 7 % 512
    with torch.inference_mode():
        return model(ids).logits.double().cpu()


def _distance(a, b):
    return float((a - b).norm() / b.norm())


@cache
def _on_the_cpu(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    settings = qcore.Settings(linear_backend="reference")
    return _logits(qcore.load_model(folder, device="cpu", dtype=dtype, settings=settings), "cpu")


def _compare(folder, kernel, report):
    settings = qcore.Settings(force_kernel=(kernel,), strict=True)
    try:
        model = qcore.load_model(folder, device="cuda", dtype=torch.bfloat16, settings=settings)
    except NoKernelError as refused:
        lines = [line for line in str(refused).splitlines() if kernel in line]
        pytest.skip(" ".join((lines or ["refused"])[-1].split()))
    rows = qcore.explain(model).rows
    assert len(rows) == 14
    assert {row.kernel for row in rows} == {kernel}
    got = _logits(model, "cuda")
    exact = _on_the_cpu(folder, torch.float32)
    # What bfloat16 and sums in another order make of the same model on the CPU. Rounded activations
    # fall to either side of an edge between two codes, on the GPU as on the CPU; so the GPU may be
    # as far from float32 as the CPU is, or twice that.
    rounding = _distance(_on_the_cpu(folder, torch.bfloat16), exact)
    report("error", f"{_distance(got, exact):.4f}")
    assert _distance(got, exact) < max(2 * rounding, 0.02)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize(("scheme", "kernel"), _cases(SCHEMES))
def test_as_on_the_cpu(quantized, record_property, scheme, kernel):
    _compare(quantized(scheme), kernel, record_property)


@pytest.mark.skipif(
    not ROOT.is_dir(), reason="QCORE_TEST_CHECKPOINTS names no folder of checkpoints"
)
@pytest.mark.parametrize(("name", "kernel"), _cases(CHECKPOINTS))
def test_checkpoints_of_other_tools(record_property, name, kernel):
    if not (ROOT / name).is_dir():
        pytest.skip(f"QCORE_TEST_CHECKPOINTS has no {name}")
    _compare(ROOT / name, kernel, record_property)


@pytest.mark.parametrize("scheme", ["int4-g128", "int8", "fp8", "fp8-block"])
def test_generation_under_a_graph(quantized, scheme):
    """A step of decoding in a CUDA graph: the same logits as without one."""
    model = qcore.load_model(quantized(scheme), device="cuda", dtype=torch.bfloat16)
    ids = torch.tensor([[3]], device="cuda")
    with torch.inference_mode():
        for _ in range(2):
            eager = model(ids, use_cache=False).logits
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(ids, use_cache=False).logits
        captured.zero_()
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(captured, eager)
