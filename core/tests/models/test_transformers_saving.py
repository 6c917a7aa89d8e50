"""`save_pretrained` writes the checkpoint that the model came from, and what the user changed."""

from __future__ import annotations

import json
import os

import checkpoint_writers as w
import float_writers as f
import moe_writers as m
import pytest
import tool_writers as t
import torch
import transformers
from qcore import errors, explain, load_model
from qcore.transformers import QcoreConfig
from safetensors.torch import load_file, save_file
from transformers_cases import write_renamed

AutoLM = transformers.AutoModelForCausalLM
CHANNEL8 = {"num_bits": 8, "strategy": "channel", "group_size": None}


def from_pretrained(folder, cls=AutoLM, **kwargs):
    kwargs.setdefault("dtype", torch.float32)
    return cls.from_pretrained(folder, quantization_config=QcoreConfig(), **kwargs)


def tensors_of(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same_files(saved, original, besides=()):
    """The same tensors, bit for bit, and the same quantization config."""
    ours, theirs = tensors_of(saved), tensors_of(original)
    assert ours.keys() - set(besides) == theirs.keys() - set(besides)
    for name in theirs.keys() - set(besides):
        assert ours[name].dtype == theirs[name].dtype, name
        assert ours[name].shape == theirs[name].shape, name
        one, two = (x.contiguous().flatten().view(torch.uint8) for x in (ours[name], theirs[name]))
        assert torch.equal(one, two), name
    one, two = (json.loads((at / "config.json").read_text()) for at in (saved, original))
    assert one["quantization_config"] == two["quantization_config"]
    assert one["architectures"] == two["architectures"]


def integers(folder, to_tensors, config, **how):
    model = w.tiny_model()
    tensors = w.quantize_model(model, to_tensors, **how)
    # As their tools write it: what is not quantized is in half precision.
    tensors |= {k: v.to(torch.bfloat16) for k, v in tensors.items() if v.dtype == torch.float32}
    return w.write_folder(folder, model, tensors, config)


def layers(folder, to_layer, config):
    model = w.tiny_model()
    return w.write_folder(folder, model, f.quantize_model(model, to_layer), config)


@pytest.fixture
def source(tmp_path):
    return integers(tmp_path / "source", w.gptq_tensors, w.gptq_config())


FORMATS = {
    "gptq act order": lambda at: integers(
        at, w.gptq_tensors, w.gptq_config(desc_act=True), permute=True
    ),
    "awq": lambda at: integers(at, w.awq_tensors, w.awq_config(), sym=False),
    "w4a16": lambda at: integers(at, lambda r: w.packed_tensors(r, True), w.ct_config()),
    "int8": lambda at: integers(
        at, w.int8_tensors, w.ct_config("int-quantized", CHANNEL8), bits=8, group=-1
    ),
    "fp8": lambda at: layers(
        at,
        lambda weight: f.fp8_layer(weight, channel=True),
        f.ct("float-quantized", {"strategy": "channel"}),
    ),
    "bnb nf4": lambda at: layers(at, t.bnb_4bit, t.bnb_config()),
    "hqq": lambda at: layers(at, t.hqq_layer, t.hqq_config()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_loaded_is_written(tmp_path, name):
    folder = FORMATS[name](tmp_path / "source")
    loaded = from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "saved")
    same_files(tmp_path / "saved", folder)
    for again in (load_model(tmp_path / "saved"), from_pretrained(tmp_path / "saved")):
        assert explain(again).to_dict() == explain(loaded).to_dict()
        assert torch.equal(w.logits(again), w.logits(loaded))
    again.save_pretrained(tmp_path / "twice")
    same_files(tmp_path / "twice", folder)


@pytest.mark.parametrize("architecture", m.SIZES)
def test_mixtures(tmp_path, architecture):
    model = m.tiny_mixture(architecture)
    tensors = m.quantize_mixture(model, w.gptq_tensors)
    folder = w.write_folder(tmp_path / "source", model, tensors, w.gptq_config())
    from_pretrained(folder).save_pretrained(tmp_path / "saved")
    same_files(tmp_path / "saved", folder)


def test_plain_experts_are_taken_apart_again(tmp_path):
    model = m.tiny_mixture("MixtralForCausalLM")
    tensors = m.plain_mixture(model)
    name, module = next(one for one in w.linears(model) if one[0].endswith("q_proj"))
    del tensors[f"{name}.weight"]
    tensors |= {f"{name}.{k}": v for k, v in w.gptq_tensors(w.quantize(module.weight)).items()}
    folder = w.write_folder(tmp_path / "source", model, tensors, w.gptq_config())
    loaded = from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "saved")
    same_files(tmp_path / "saved", folder)
    loaded.model.layers[1].mlp.experts.gate_up_proj[2, 100] += 1  # a row of up
    loaded.save_pretrained(tmp_path / "changed")
    changed = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    same_files(tmp_path / "changed", folder, besides=[changed])
    now, before = (tensors_of(at)[changed] for at in (tmp_path / "changed", folder))
    assert torch.equal(now[4], before[4] + 1)
    assert torch.equal(now[5:], before[5:])


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_quantized_heads(tmp_path, tied):
    model = w.tiny_model(tie_word_embeddings=tied)
    tensors = w.quantize_model(model, w.gptq_tensors, lm_head=not tied)
    config = w.gptq_config(lm_head=not tied)
    folder = w.write_folder(tmp_path / "source", model, tensors, config, tie_word_embeddings=True)
    loaded = from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "saved")
    same_files(tmp_path / "saved", folder)
    saved = load_model(tmp_path / "saved")
    assert torch.equal(w.logits(saved), w.logits(loaded))
    assert saved.config.tie_word_embeddings == tied


def test_shards(source, tmp_path):
    from_pretrained(source).save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 3
    same_files(tmp_path / "saved", source)
    sharded = from_pretrained(tmp_path / "saved")
    assert torch.equal(w.logits(sharded), w.logits(load_model(source)))
    sharded.save_pretrained(tmp_path / "single")
    same_files(tmp_path / "single", source)


def test_a_model_without_its_head_saves_the_whole_checkpoint(source, tmp_path):
    loaded = from_pretrained(source, transformers.AutoModel)
    loaded.save_pretrained(tmp_path / "saved")
    assert tensors_of(tmp_path / "saved").keys() == tensors_of(source).keys()
    again = from_pretrained(tmp_path / "saved", transformers.AutoModel)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, loaded(ids).last_hidden_state)


def test_a_new_head_is_saved(source, tmp_path):
    cls = transformers.AutoModelForSequenceClassification
    loaded = from_pretrained(source, cls, num_labels=3)
    loaded.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved", cls)
    assert torch.equal(again.score.weight, loaded.score.weight)
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_changed_parameters_are_saved(source, tmp_path):
    loaded = from_pretrained(source)
    loaded.model.norm.weight += 1
    loaded.resize_token_embeddings(98, mean_resizing=False)
    loaded.save_pretrained(tmp_path / "saved")
    changed = {"model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"}
    same_files(tmp_path / "saved", source, besides=changed)
    again = load_model(tmp_path / "saved")
    assert again.config.vocab_size == 98
    assert torch.equal(w.logits(again), w.logits(loaded))


def test_names_and_settings_of_the_source_are_kept(tmp_path):
    folder = integers(tmp_path / "source", w.gptq_tensors, w.gptq_config())
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    del quantization["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(quantization))
    from_pretrained(folder).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["quantization_config"] == w.gptq_config()
    assert torch.equal(
        w.logits(load_model(tmp_path / "saved")), w.logits(load_model(folder, dtype="float32"))
    )


def test_names_that_transformers_changes(tmp_path):
    folder = write_renamed(tmp_path / "source")
    loaded = from_pretrained(folder, transformers.AutoModelForImageTextToText)
    loaded.save_pretrained(tmp_path / "saved")
    same_files(tmp_path / "saved", folder)
    assert torch.equal(w.logits(load_model(tmp_path / "saved")), w.logits(loaded))


def test_saving_into_its_own_folder(source):
    before = tensors_of(source)
    loaded = from_pretrained(source)
    loaded.save_pretrained(source)
    after = tensors_of(source)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(errors.CheckpointError, match="changed since the model was loaded"):
        loaded.save_pretrained(source)


def test_offloaded_parameters_are_saved(source, tmp_path):
    split = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu"}
    split |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    loaded = from_pretrained(source, device_map=split, offload_folder=tmp_path / "offload")
    with pytest.warns(UserWarning, match="offloaded modules"):
        loaded.save_pretrained(tmp_path / "saved")
    same_files(tmp_path / "saved", source)


# -- what is refused ---------------------------------------------------------------------------


def test_a_source_that_is_gone(source, tmp_path):
    loaded = from_pretrained(source)
    (source / "model.safetensors").unlink()
    with pytest.raises(
        errors.CheckpointError, match=r"model\.safetensors: No such file.*keep them"
    ):
        loaded.save_pretrained(tmp_path / "saved")


def test_a_source_that_was_written_again(source, tmp_path):
    loaded = from_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    save_file(tensors, source / "model.safetensors")
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(errors.CheckpointError, match="changed since the model was loaded"):
        loaded.save_pretrained(tmp_path / "saved")


def test_changed_quantized_layers(source, tmp_path):
    loaded = from_pretrained(source)
    layer = loaded.model.layers[1].mlp.down_proj
    parameter = next(p for p in layer.parameters() if p.is_floating_point())
    parameter.data[0, 0] *= 2
    with pytest.raises(errors.WeightError, match=r"layers\.1\.mlp\.down_proj: no longer"):
        loaded.save_pretrained(tmp_path / "saved")
    parameter.data[0, 0] /= 2
    loaded.save_pretrained(tmp_path / "saved")
    loaded.model.layers[1].mlp.down_proj = torch.nn.Linear(96, 64, bias=False)
    with pytest.raises(errors.WeightError, match=r"layers\.1\.mlp\.down_proj: no longer"):
        loaded.save_pretrained(tmp_path / "saved")
