"""bitsandbytes, HQQ, torchao and quanto checkpoints agree with a float model of what they say."""

from __future__ import annotations

import checkpoint_writers as w
import float_writers as f
import pytest
import tool_writers as t
import torch
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedLinear
from tool_cases import FORMATS, save

CLOSE = 1e-5
LAYERS = 14


@pytest.mark.parametrize("name", FORMATS)
def test_format(tmp_path, name, format_result):
    kernel_type, rounding = FORMATS[name][2:]
    folder, model = save(tmp_path, name)
    loaded = load_model(folder, device="cpu")
    layers = [m for m in loaded.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == LAYERS
    assert {row.decision.config.kernel_type for row in explain(loaded).rows} == {kernel_type}
    error = w.relative_error(w.logits(loaded), w.logits(model))
    bound = 0.02 if rounding else CLOSE
    assert error < bound
    torch.manual_seed(1)
    errors = []
    for layer, (_, plain) in zip(layers, w.linears(model), strict=True):
        x = torch.randn(5, plain.in_features)
        errors.append(w.relative_error(layer(x), plain(x)))
    assert max(errors) < CLOSE
    format_result(folder, loaded, error, bound, layer_error=max(errors), layer_bound=CLOSE)


@pytest.mark.parametrize("name", FORMATS)
def test_inspection_knows_the_layers(tmp_path, name):
    folder, model = save(tmp_path, name)
    report = inspect_checkpoint(folder)
    if name.startswith("quanto qint") and name != "quanto qint8":
        assert report.layers == (), "nothing but the model's class says the shapes"
        return
    shapes = {n: (m.in_features, m.out_features) for n, m in w.linears(model)}
    assert {r.layer: (r.K, r.N) for r in report.layers} == shapes
    assert {r.decision.config.kernel_type for r in report.layers} == {FORMATS[name][2]}


@pytest.mark.parametrize("name", ["bnb nf4", "bnb nf4 double", "hqq 4", "hqq 3"])
def test_blocks_that_end_within_a_row(tmp_path, name):
    """K = 80 is no multiple of 64, nor of 32."""
    if name.startswith("hqq"):
        folder, model = save(tmp_path, name, intermediate_size=80)
    else:
        folder, model = save(tmp_path, name, intermediate_size=81 if "double" in name else 80)
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_16_bits(tmp_path, dtype):
    folder, model = save(tmp_path, "bnb nf4 double")
    loaded = load_model(folder, device="cpu", dtype=dtype)
    assert w.relative_error(w.logits(loaded).float(), w.logits(model)) < 0.05


def test_bias_and_a_layer_that_is_not_quantized(tmp_path):
    model = w.tiny_model("Qwen2ForCausalLM")
    tensors = f.quantize_model(model, t.bnb_4bit)
    skipped = "model.layers.1.mlp.up_proj"
    tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{skipped}.")}
    tensors[f"{skipped}.weight"] = model.get_submodule(skipped).weight.clone()
    config = t.bnb_config(llm_int8_skip_modules=["lm_head", skipped])
    loaded = load_model(w.write_folder(tmp_path, model, tensors, config), device="cpu")
    assert type(loaded.get_submodule(skipped)) is torch.nn.Linear
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


def test_llm_int8_says_that_activations_are_not_rounded(tmp_path):
    folder, _ = save(tmp_path, "bnb int8")
    assert "LLM.int8 rounds activations" in explain(load_model(folder, device="cpu")).notes[0]
    assert "LLM.int8 rounds activations" in inspect_checkpoint(folder).render()


@pytest.mark.parametrize("mixed", [False, True])
def test_hqqs_own_safetensors(tmp_path, mixed):
    """`save_to_safetensors` has no config: each layer's numbers are tensors beside it."""
    model = w.tiny_model()
    names = [name for name, _ in w.linears(model)]

    def to_layer(weight):
        bits = 8 if mixed and "down_proj" in names.pop(0) else 4
        return t.hqq_layer(weight, bits=bits)

    tensors = f.quantize_model(model, to_layer)
    folder = w.write_folder(tmp_path, model, tensors)
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    assert [row.decision.config.kernel_type for row in explain(loaded).rows] == ["codebook"] * 14
    schemes = {row.layer: row.scheme for row in inspect_checkpoint(folder).layers}
    assert len(schemes) == LAYERS
    down = schemes["model.layers.0.mlp.down_proj"]
    assert down == ("HQQ 8 bit g32" if mixed else "HQQ 4 bit g32")


def test_hqq_by_tag(tmp_path):
    model = w.tiny_model()
    names = [name for name, _ in w.linears(model)]

    def to_layer(weight):
        return t.hqq_layer(weight, bits=8 if "self_attn" in names.pop(0) else 3)

    tags = {".".join(n.split(".")[3:]): 8 if "self_attn" in n else 3 for n in names}
    config = t.hqq_config() | {"quant_config": {k: t.hqq_params(v) for k, v in tags.items()}}
    tensors = f.quantize_model(model, to_layer)
    loaded = load_model(w.write_folder(tmp_path, model, tensors, config), device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    assert {row.decision.config.bits for row in explain(loaded).rows} == {3, 8}


def test_torchao_by_name(tmp_path):
    model = w.tiny_model()
    names = [name for name, _ in w.linears(model)]
    one = "model.layers.0.mlp.up_proj"

    def to_layer(weight):
        name = names.pop(0)
        if name == one:
            return {}, weight
        return t.ao_int4(weight) if "self_attn" in name else t.ao_int(weight)

    by_name = {
        one: None,
        r"re:.*\.self_attn\..*_proj": t.ao("Int4WeightOnlyConfig", group_size=32),
        "_default": t.ao("Int8WeightOnlyConfig"),
    }
    config = t.ao_config("FqnToConfig", version=1, fqn_to_config=by_name)
    tensors = f.quantize_model(model, to_layer)
    tensors[f"{one}.weight"] = model.get_submodule(one).weight.clone()
    loaded = load_model(w.write_folder(tmp_path, model, tensors, config), device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    assert len(explain(loaded).rows) == LAYERS - 1
