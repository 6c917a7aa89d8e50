"""Small checkpoints of several methods, and what must hold of each model that is loaded."""

from __future__ import annotations

import checkpoint_writers as w
import float_writers as f
import tool_writers as t
import torch
import transformers
from qcore import explain
from qcore.transformers import QcoreConfig
from safetensors.torch import load_file

AutoLM = transformers.AutoModelForCausalLM


def from_pretrained(folder, config=None, cls=AutoLM, **kwargs):
    """A model, after a check that transformers has nothing to complain about."""
    config = QcoreConfig() if config is None else config
    kwargs.setdefault("dtype", torch.float32)
    model, info = cls.from_pretrained(
        folder, quantization_config=config, output_loading_info=True, **kwargs
    )
    complaints = {key: found for key, found in info.items() if found}
    assert not complaints
    return model


def same(loaded, expected):
    """The same layers, kernels, bits of every tensor, and logits."""
    assert explain(loaded).to_dict()["layers"] == explain(expected).to_dict()["layers"]
    ours, theirs = dict(loaded.named_parameters()), dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.dtype == theirs[name].dtype, name
    buffers = dict(expected.named_buffers())
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(w.logits(loaded), w.logits(expected))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


CHANNEL8 = {"num_bits": 8, "strategy": "channel", "group_size": None}
DYNAMIC8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
INTEGERS = {
    "gptq": (w.gptq_tensors, w.gptq_config(), {}),
    "gptq act order": (w.gptq_tensors, w.gptq_config(desc_act=True), {"permute": True}),
    "awq": (w.awq_tensors, w.awq_config(), {"sym": False}),
    "w4a16": (lambda r: w.packed_tensors(r, True), w.ct_config(), {}),
    "w8a8": (
        w.int8_tensors,
        w.ct_config("int-quantized", CHANNEL8, DYNAMIC8),
        {"bits": 8, "group": -1},
    ),
    "auto-round": (w.gptq_tensors, w.auto_round_config(), {}),
}
FLOATS = {
    "fp8": (
        lambda weight: f.fp8_layer(weight, channel=True),
        f.ct("float-quantized", {"strategy": "channel"}),
    ),
    "nvfp4": (
        f.nvfp4_layer,
        f.ct("nvfp4-pack-quantized", {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    ),
    "bnb nf4": (t.bnb_4bit, t.bnb_config()),
    "bnb int8": (t.bnb_int8, t.bnb_config(**t.BNB_INT8)),
    "hqq": (t.hqq_layer, t.hqq_config()),
    "torchao": (
        t.ao_int,
        t.ao_config("Int8WeightOnlyConfig", granularity=t.ao("PerRow", dim=-1), group_size=None),
    ),
}


def write(folder, name, model=None, **config):
    model = w.tiny_model() if model is None else model
    if name in INTEGERS:
        to_tensors, quantization, how = INTEGERS[name]
        tensors = w.quantize_model(model, to_tensors, **how)
    else:
        to_layer, quantization = FLOATS[name]
        tensors = f.quantize_model(model, to_layer)
    return w.write_folder(folder, model, tensors, quantization, **config)


def write_renamed(folder):
    """A model whose tensors transformers renames; the quantization's targets are the old names."""
    config = transformers.Gemma3Config(
        text_config={**w.SIZES, "tie_word_embeddings": True},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    model.save_pretrained(folder / "plain")
    saved, tensors = load_file(folder / "plain" / "model.safetensors"), {}
    for name, tensor in saved.items():
        quantized = name.startswith("language_model.") and name.endswith("_proj.weight")
        packed = w.packed_tensors(w.quantize(tensor), True) if quantized else {"weight": tensor}
        prefix = name.removesuffix(".weight")
        tensors |= {f"{prefix}.{k}" if quantized else name: v for k, v in packed.items()}
    quantization = w.ct_config()
    quantization["config_groups"]["g"]["targets"] = [r"re:language_model\.model\..*_proj$"]
    return w.write_folder(folder, model, tensors, quantization)
