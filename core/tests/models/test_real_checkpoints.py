"""Checkpoints that other projects' tools wrote, each with the logits that it should give.

QCORE_TEST_CHECKPOINTS names a folder with one folder a checkpoint. Its ``reference.safetensors``
holds ``input_ids``, ``logits`` (weights dequantized in float32, activations left alone) and, where
the format quantizes activations, ``logits_activations_quantized`` (by the tool's own forward).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import checkpoint_writers as w
import pytest
import torch
import transformers
from qcore.models import inspect_checkpoint, load_model
from qcore.quantization import QuantizedLinear
from safetensors.torch import load_file

ROOT = Path(os.environ.get("QCORE_TEST_CHECKPOINTS", "/nonexistent"))
pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason="QCORE_TEST_CHECKPOINTS names no folder of checkpoints"
)

WEIGHT_ONLY = (
    "base",
    "ar-awq-g128",
    "ct-w4a16",
    "ct-mxfp4a16",
    "ct-nvfp4a16",
    "ct-w4a16-asym",
    "gptqmodel-g128",
    "gptqmodel-g32-act",
)
FP8 = ("ct-fp8-block", "ct-fp8-dynamic")


def folder(name):
    if not (ROOT / name).is_dir():
        pytest.skip(f"QCORE_TEST_CHECKPOINTS has no {name}")
    return ROOT / name


def logits(model, reference):
    with torch.no_grad():
        return model(reference["input_ids"]).logits


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_weight_only(name):
    path = folder(name)
    reference = load_file(path / "reference.safetensors")
    model = load_model(path, device="cpu", dtype=torch.float32)
    assert w.relative_error(logits(model, reference), reference["logits"]) < 1e-5
    quantized = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(quantized) == (0 if name == "base" else 14)
    has_g_idx = {getattr(m.kernel.config, "has_g_idx", False) for m in quantized}
    assert has_g_idx <= {name == "gptqmodel-g32-act"}


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_default_dtype(name):
    """bfloat16 rounds each of some 40 products and norms by half of 2**-8: well below 10 %."""
    path = folder(name)
    reference = load_file(path / "reference.safetensors")
    got = logits(load_model(path, device="cpu"), reference).float()
    assert w.relative_error(got, reference["logits"]) < 0.05


def _float_model(path, levels, lowest):
    """An independent W8A8: dequantized weights, inputs rounded by amax / levels."""
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config))
    tensors = load_file(path / "model.safetensors")
    state = {
        name: t.float() * tensors[f"{name}_scale"].float() if t.dtype == torch.int8 else t.float()
        for name, t in tensors.items()
        if not name.endswith("_scale")
    }
    model = model.float().eval()
    model.load_state_dict(state)

    def round_input(module, args):
        scale = args[0].abs().amax(-1, keepdim=True) / levels
        return (torch.clamp(torch.round(args[0] / scale), lowest, 127) * scale,)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(round_input)
    return model


def test_w8a8_differs_from_its_tool_by_the_activations_scale_only():
    """Why qcore's logits are not the tool's, and by how much they may differ.

    The tool rounds an input to amax / 127.5, qcore as vLLM to amax / 127. The same independent
    code, with that one number changed, gives the tool's logits to float32 rounding and qcore's as
    nearly as roundings to int8 repeat: an input at the edge between two codes may fall to either
    side, and with it all that follows.

    The two roundings have errors of e1 and e2 against unquantized activations. They are made on
    different grids, so they add like independent errors at the most: sqrt(e1**2 + e2**2).
    """
    path = folder("ct-w8a8")
    reference = load_file(path / "reference.safetensors")
    plain, tools = reference["logits"], reference["logits_activations_quantized"]
    ours = logits(load_model(path, device="cpu", dtype=torch.float32), reference)
    assert w.relative_error(logits(_float_model(path, 127.5, -128), reference), tools) < 1e-5
    assert w.relative_error(ours, logits(_float_model(path, 127, -127), reference)) < 0.01
    e1, e2 = w.relative_error(ours, plain), w.relative_error(tools, plain)
    assert e1 < 1.1 * e2
    assert w.relative_error(ours, tools) < (e1**2 + e2**2) ** 0.5


def test_w8a8_layer_by_layer():
    """On the same input, each layer gives what its definition says, to float32 rounding."""
    path = folder("ct-w8a8")
    reference = load_file(path / "reference.safetensors")
    tensors = load_file(path / "model.safetensors")
    model = load_model(path, device="cpu", dtype=torch.float32)
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            module.register_forward_hook(lambda m, x, y, name=name: seen.append((name, x[0], y)))
    logits(model, reference)
    assert len(seen) == 14
    for name, x, got in seen:
        scale = x.abs().amax(-1, keepdim=True) / 127
        codes = torch.clamp(torch.round(x / scale), -127, 127).double()
        weight = tensors[f"{name}.weight"].double() * tensors[f"{name}.weight_scale"].double()
        assert w.relative_error(got, (codes @ weight.t()) * scale.double()) < 1e-6, name


@pytest.mark.parametrize("name", FP8)
def test_fp8_activations_are_rounded_as_their_tool_does(name):
    path = folder(name)
    reference = load_file(path / "reference.safetensors")
    got = logits(load_model(path, device="cpu", dtype=torch.float32), reference)
    assert w.relative_error(got, reference["logits_activations_quantized"]) < 1e-5


@pytest.mark.parametrize("name", [*WEIGHT_ONLY, *FP8, "ct-w8a8"])
def test_inspection(name):
    report = inspect_checkpoint(folder(name), target="cuda:sm_90")
    assert len(report.layers) == (0 if name == "base" else 14)
    assert all(layer.decision.chosen for layer in report.layers)
