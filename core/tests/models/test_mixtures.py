"""Mixtures of experts agree with the float model that holds the same, dequantized, weights."""

from __future__ import annotations

import checkpoint_writers as w
import moe_writers as m
import pytest
import torch
from qcore import errors
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedExperts

CLOSE = 1e-5

FORMATS = {
    "gptq": (w.gptq_tensors, w.gptq_config(), {}),
    "gptq asymmetric": (w.gptq_tensors, w.gptq_config(sym=False), {"sym": False}),
    "gptq act order": (w.gptq_tensors, w.gptq_config(desc_act=True), {"permute": True}),
    "gptq 8 bit channel": (
        w.gptq_tensors,
        w.gptq_config(bits=8, group_size=-1),
        {"bits": 8, "group": -1},
    ),
    "gptq 3 bit": (w.gptq_tensors, w.gptq_config(bits=3), {"bits": 3}),
    "gptq wide group": (w.gptq_tensors, w.gptq_config(group_size=64), {"group": 64}),
    "awq": (
        w.awq_tensors,
        w.awq_config(modules_to_not_convert=["gate", "shared_expert_gate", "lm_head"]),
        {"sym": False},
    ),
    "w4a16": (
        lambda r: w.packed_tensors(r, True),
        w.ct_config(ignore=["lm_head", "re:.*gate$"]),
        {},
    ),
    "w4a16 asymmetric": (
        lambda r: w.packed_tensors(r, False),
        w.ct_config(weights={"symmetric": False}, ignore=["lm_head", "re:.*gate$"]),
        {"sym": False},
    ),
    "w8a16 channel": (
        lambda r: w.packed_tensors(r, True),
        w.ct_config(
            weights={"num_bits": 8, "strategy": "channel", "group_size": None},
            ignore=["lm_head", "re:.*gate$"],
        ),
        {"bits": 8, "group": -1},
    ),
    "int-quantized weight only": (
        w.int8_tensors,
        w.ct_config(
            "int-quantized",
            {"num_bits": 8, "strategy": "channel", "group_size": None},
            ignore=["lm_head", "re:.*gate$"],
        ),
        {"bits": 8, "group": -1},
    ),
}


@pytest.mark.parametrize("architecture", m.SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_format(tmp_path, name, architecture):
    to_tensors, config, how = FORMATS[name]
    model = m.tiny_mixture(architecture)
    folder = w.write_folder(tmp_path, model, m.quantize_mixture(model, to_tensors, **how), config)
    loaded = load_model(folder, device="cpu")
    experts = [x for x in loaded.modules() if isinstance(x, QuantizedExperts)]
    assert len(experts) == len(m.experts_modules(model)) == 2
    error = w.relative_error(w.logits(loaded), w.logits(model))
    print(f"{architecture} {name}: {error:.1e}")
    assert error < CLOSE
