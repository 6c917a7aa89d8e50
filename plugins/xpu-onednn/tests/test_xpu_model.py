"""A small model through the kernels, from a file to its logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import qcore
import torch

pytestmark = pytest.mark.runs
transformers = pytest.importorskip("transformers", reason="models need qcore[models]")


@pytest.mark.parametrize(
    ("scheme", "kernel"),
    [
        ("int4-g32", "XPUwNa16LinearKernel"),
        ("fp8", "XPUW8A8FP8LinearKernel"),
        ("mxfp8", "XPUMxFp8LinearKernel"),
        ("mxfp4", "XPUMxFp4LinearKernel"),
    ],
)
def test_model(scheme: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.arange(12).reshape(2, 6)
    model = qcore.load_model(tmp_path, quantize=scheme)
    assert kernel in str(qcore.explain(model))
    with torch.no_grad():
        logits = model(ids).logits
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", kernel)
    other = qcore.load_model(tmp_path, quantize=scheme)
    assert kernel not in {type(m).__name__ for m in other.modules()}
    with torch.no_grad():
        wanted = other(ids).logits
    torch.testing.assert_close(logits.float(), wanted.float(), rtol=2e-2, atol=2e-2)
