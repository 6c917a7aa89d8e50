"""Loaded models agree with the float model that holds the same, dequantized, weights."""

from __future__ import annotations

import checkpoint_writers as w
import pytest
import torch
import transformers
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedLinear
from safetensors.torch import load_file

CLOSE = 1e-5  # float32 rounding of another order of summation

FORMATS = {
    "gptq": (w.gptq_tensors, w.gptq_config(), {}),
    "gptq without sym": (w.gptq_tensors, {**w.gptq_config(), "sym": None}, {}),
    "gptq asymmetric": (w.gptq_tensors, w.gptq_config(sym=False), {"sym": False}),
    "gptq act order": (w.gptq_tensors, w.gptq_config(desc_act=True), {"permute": True}),
    "gptq channel": (w.gptq_tensors, w.gptq_config(group_size=-1), {"group": -1}),
    "gptq wide group": (w.gptq_tensors, w.gptq_config(group_size=128), {"group": 128}),
    "gptq 8 bit": (w.gptq_tensors, w.gptq_config(bits=8), {"bits": 8}),
    "gptq 2 bit asymmetric": (
        w.gptq_tensors,
        w.gptq_config(bits=2, sym=False),
        {"bits": 2, "sym": False},
    ),
    "gptq 3 bit": (w.gptq_tensors, w.gptq_config(bits=3), {"bits": 3}),
    "gptq 3 bit asymmetric": (
        w.gptq_tensors,
        w.gptq_config(bits=3, sym=False, meta={"quantizer": ["gptqmodel:5.8.0"]}),
        {"bits": 3, "sym": False},
    ),
    "gptq 3 bit asymmetric by AutoGPTQ": (
        lambda r: w.gptq_tensors(r, by_autogptq=True),
        w.gptq_config(bits=3, sym=False, desc_act=True),
        {"bits": 3, "sym": False, "permute": True},
    ),
    "gptq v2 3 bit asymmetric": (
        lambda r: w.gptq_tensors(r, v2=True),
        w.gptq_config(bits=3, sym=False, checkpoint_format="gptq_v2"),
        {"bits": 3, "sym": False},
    ),
    "gptq v2 asymmetric": (
        lambda r: w.gptq_tensors(r, v2=True),
        w.gptq_config(sym=False, checkpoint_format="gptq_v2"),
        {"sym": False},
    ),
    "gptq v2 symmetric": (
        lambda r: w.gptq_tensors(r, v2=True),
        w.gptq_config(checkpoint_format="gptq_v2"),
        {},
    ),
    "gptq without g_idx": (lambda r: w.gptq_tensors(r, g_idx=False), w.gptq_config(), {}),
    "awq": (w.awq_tensors, w.awq_config(), {"sym": False}),
    "awq symmetric": (w.awq_tensors, w.awq_config(zero_point=False), {}),
    "w4a16": (lambda r: w.packed_tensors(r, True), w.ct_config(), {}),
    "w4a16 asymmetric": (
        lambda r: w.packed_tensors(r, False),
        w.ct_config(weights={"symmetric": False}),
        {"sym": False},
    ),
    "w4a16 act order": (
        lambda r: w.packed_tensors(r, True, g_idx=True),
        w.ct_config(weights={"actorder": "group"}),
        {"permute": True},
    ),
    "w8a16 channel": (
        lambda r: w.packed_tensors(r, True),
        w.ct_config(weights={"num_bits": 8, "strategy": "channel", "group_size": None}),
        {"bits": 8, "group": -1},
    ),
    "w3a16": (
        lambda r: w.packed_tensors(r, True),
        w.ct_config(weights={"num_bits": 3}),
        {"bits": 3},
    ),
    "w3a16 without gaps": (
        lambda r: w.packed_tensors(r, False, pack=w.pack_dense),
        w.ct_config(weights={"num_bits": 3, "symmetric": False}),
        {"bits": 3, "sym": False},
    ),
    "auto-round gptq": (w.gptq_tensors, w.auto_round_config(), {}),
    "auto-round gptq v2": (
        lambda r: w.gptq_tensors(r, v2=True),
        w.auto_round_config("auto_round:gptqmodel", sym=False),
        {"sym": False},
    ),
    "auto-round awq": (
        w.awq_tensors,
        w.auto_round_config("auto_round:auto_awq", sym=False),
        {"sym": False},
    ),
    "naive-quantized weight only": (
        w.int8_tensors,
        w.ct_config("naive-quantized", {"num_bits": 8, "strategy": "channel", "group_size": None}),
        {"bits": 8, "group": -1},
    ),
    "int-quantized weight only": (
        w.int8_tensors,
        w.ct_config("int-quantized", {"num_bits": 8, "strategy": "channel", "group_size": None}),
        {"bits": 8, "group": -1},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_format(tmp_path, name, format_result):
    to_tensors, config, how = FORMATS[name]
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, w.quantize_model(model, to_tensors, **how), config)
    loaded = load_model(folder, device="cpu")
    assert len([m for m in loaded.modules() if isinstance(m, QuantizedLinear)]) == 14
    error = w.relative_error(w.logits(loaded), w.logits(model))
    assert error < CLOSE
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    report = inspect_checkpoint(folder)
    shapes = {(n, m.in_features, m.out_features) for n, m in w.linears(model)}
    assert {(row.layer, row.K, row.N) for row in report.layers} == shapes
    format_result(folder, loaded, error, CLOSE)


ARCHITECTURES = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "Phi3ForCausalLM": {},
    "Gemma3ForCausalLM": {"tie_word_embeddings": True},
    "Qwen2 tied": {"tie_word_embeddings": True},
    "Llama rope scaled": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(tmp_path, name):
    cls = name if name.endswith("LM") else f"{name.split()[0]}ForCausalLM"
    model = w.tiny_model(cls, **ARCHITECTURES[name])
    tensors = w.quantize_model(model, lambda r: w.packed_tensors(r, True))
    folder = w.write_folder(tmp_path, model, tensors, w.ct_config())
    loaded = load_model(folder, device="cpu")
    assert type(loaded) is type(model)
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    for (ours, one), (theirs, other) in zip(
        loaded.named_buffers(), model.named_buffers(), strict=True
    ):
        assert ours == theirs
        assert torch.equal(one, other), ours
    if model.config.tie_word_embeddings:
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_names_that_transformers_changes(tmp_path):
    """The config's patterns are about the checkpoint's names, the model's are others."""
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
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    outer = "language_model.model."
    tensors = {}
    for name, tensor in saved.items():
        if not (name.startswith(outer) and name.endswith("_proj.weight")):
            tensors[name] = tensor
            continue
        r = w.quantize(tensor)
        layer = name.removesuffix(".weight")
        tensors.update({f"{layer}.{k}": v for k, v in w.packed_tensors(r, True).items()})
        inner = f"model.language_model.{layer.removeprefix(outer)}"
        model.get_submodule(inner).weight.data = r.weight()
    quantization = w.ct_config()
    quantization["config_groups"]["g"]["targets"] = [r"re:language_model\.model\..*_proj$"]
    folder = w.write_folder(tmp_path / "out", model, tensors, quantization)
    loaded = load_model(folder, device="cpu")
    assert len(explain(loaded).rows) == 14
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_w8a8_runs_each_layer_on_int8_inputs(tmp_path, static, symmetric, strategy, format_result):
    model = w.tiny_model()

    def tensors_of(r):
        found = w.int8_tensors(r)
        if strategy == "tensor":
            r.scale[:] = 0.004
            found["weight_scale"] = torch.tensor([0.004], dtype=torch.float16)
        if static:
            found["input_scale"] = torch.tensor([0.05])
            if not symmetric:
                found["input_zero_point"] = torch.tensor([7], dtype=torch.int8)
        return found

    layers = {}
    for name, module in w.linears(model):
        r = w.quantize(module.weight, bits=8, group=-1)
        layers[name] = (tensors_of(r), r.weight())
    tensors = {f"{n}.{k}": v for n, (found, _) in layers.items() for k, v in found.items()}
    gone = {f"{n}.weight" for n in layers}
    state = model.state_dict()
    tensors.update({k: v for k, v in state.items() if k not in gone and k not in tensors})
    inputs = {
        "num_bits": 8,
        "type": "int",
        "strategy": "tensor" if static else "token",
        "dynamic": not static,
        "symmetric": symmetric,
    }
    config = w.ct_config(
        "int-quantized",
        {"num_bits": 8, "strategy": strategy, "group_size": None},
        inputs,
    )
    folder = w.write_folder(tmp_path, model, tensors, config)
    loaded = load_model(folder, device="cpu")
    x = torch.randn(5, 64) * 2
    layer = loaded.get_submodule("model.layers.1.self_attn.q_proj")
    weight = layers["model.layers.1.self_attn.q_proj"][1]
    low = -127 if symmetric else -128
    if static:
        scale, zero = torch.tensor(0.05), 0.0 if symmetric else 7.0
    elif symmetric:
        scale, zero = x.abs().amax(1, keepdim=True) / 127, 0.0
    else:
        least, most = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scale = (most - least) / 255
        zero = (-128 - torch.round(least / scale)).clamp(-128, 127)
    rounded = ((x / scale).round() + zero).clamp(low, 127) - zero
    expected = (rounded * scale).double() @ weight.double().t()
    error = w.relative_error(layer(x), expected)
    assert error < CLOSE
    format_result(folder, loaded, None, None, layer_error=error, layer_bound=CLOSE)


def test_an_output_layer_that_the_config_forgets(tmp_path):
    """auto-round's: lm_head has only a weight in bfloat16, but is not among the ignored."""
    model = w.tiny_model()
    tensors = w.quantize_model(model, lambda r: w.packed_tensors(r, True))
    folder = w.write_folder(tmp_path, model, tensors, w.ct_config(ignore=[]))
    loaded = load_model(folder, device="cpu")
    assert type(loaded.lm_head) is torch.nn.Linear
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    assert len(inspect_checkpoint(folder).layers) == 14


def test_unquantized_checkpoint(tmp_path):
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, model.state_dict())
    loaded = load_model(folder, device="cpu")
    assert torch.equal(w.logits(loaded), w.logits(model))
    assert str(explain(loaded)) == "no quantized layers"


def test_dynamic_rules_leave_out_and_change_layers(tmp_path):
    model = w.tiny_model()
    tensors = {}
    for name, module in w.linears(model):
        if ".v_proj" in name:
            continue
        bits = 8 if "down_proj" in name else 4
        r = w.quantize(module.weight, bits=bits)
        module.weight = torch.nn.Parameter(r.weight(), requires_grad=False)
        tensors.update({f"{name}.{k}": v for k, v in w.gptq_tensors(r).items()})
    quantized = {key.rpartition(".")[0] for key in tensors}
    tensors.update(
        {k: v for k, v in model.state_dict().items() if k.rpartition(".")[0] not in quantized}
    )
    rules = {r"-:.*\.v_proj": {}, r"+:.*\.mlp\.down_proj$": {"bits": 8}}
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config(dynamic=rules))
    loaded = load_model(folder, device="cpu")
    assert type(loaded.model.layers[0].self_attn.v_proj) is torch.nn.Linear
    assert "uint8b128" in str(explain(loaded))
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


def test_gptq_layer_that_the_file_has_plain_is_not_quantized(tmp_path):
    model = w.tiny_model()
    name, module = w.linears(model)[3]
    plain = module.weight.clone()
    tensors = w.quantize_model(model, w.gptq_tensors)
    tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}.")}
    module.weight = torch.nn.Parameter(plain, requires_grad=False)
    tensors[f"{name}.weight"] = plain
    loaded = load_model(w.write_folder(tmp_path, model, tensors, w.gptq_config()), device="cpu")
    assert type(loaded.get_submodule(name)) is torch.nn.Linear
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


def test_bias_of_zeros_is_dropped_and_another_is_used(tmp_path):
    model = w.tiny_model()
    names = [name for name, _ in w.linears(model)]
    tensors = w.quantize_model(model, w.gptq_tensors)
    for name in names:
        tensors[f"{name}.bias"] = torch.zeros(model.get_submodule(name).out_features).half()
    bias = torch.randn(64)
    tensors[f"{names[0]}.bias"] = bias
    model.get_submodule(names[0]).bias = torch.nn.Parameter(bias)
    loaded = load_model(w.write_folder(tmp_path, model, tensors, w.gptq_config()), device="cpu")
    assert loaded.get_submodule(names[1]).bias is None
    assert "bias" in str(explain(loaded))
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


# -- the output layer --------------------------------------------------------------------------


@pytest.mark.parametrize("tied_by_config", [False, True])
def test_quantized_lm_head(tmp_path, tied_by_config):
    model = w.tiny_model()
    tensors = w.quantize_model(model, w.gptq_tensors, lm_head=True)
    folder = w.write_folder(
        tmp_path,
        model,
        tensors,
        w.gptq_config(lm_head=True),
        tie_word_embeddings=tied_by_config,
    )
    loaded = load_model(folder, device="cpu")
    assert isinstance(loaded.lm_head, QuantizedLinear)
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    assert loaded.config.tie_word_embeddings is False
    assert ("not tied" in str(explain(loaded))) == tied_by_config
    loaded.tie_weights()
    assert isinstance(loaded.lm_head, QuantizedLinear)


def test_tied_by_config_but_different_in_the_file_are_untied(tmp_path):
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, model.state_dict(), tie_word_embeddings=True)
    loaded = load_model(folder, device="cpu")
    assert torch.equal(w.logits(loaded), w.logits(model))
    assert "untied" in str(explain(loaded))
    loaded.tie_weights()
    assert torch.equal(w.logits(loaded), w.logits(model))


def test_tied_lm_head_without_tensors_stays_tied_though_targeted(tmp_path):
    model = w.tiny_model(tie_word_embeddings=True)
    tensors = w.quantize_model(model, lambda r: w.packed_tensors(r, True))
    folder = w.write_folder(tmp_path, model, tensors, w.ct_config(ignore=[]))
    loaded = load_model(folder, device="cpu")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
