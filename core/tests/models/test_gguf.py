"""GGUF files run as the float model with the weights that their blocks stand for."""

from __future__ import annotations

import os
import sys
import time

import checkpoint_writers as w
import pytest
import torch

pytest.importorskip("gguf", reason="the tests write files with it")

import gguf_writers as g
import qcore
from qcore import errors
from qcore.models import inspect_checkpoint, load_model
from qcore.quantization.embedding import QuantizedEmbedding
from qcore.quantization.linear import QuantizedLinear

GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}
MODELS = {
    "llama": ("LlamaForCausalLM", {}),
    "llama biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama one kv head": ("LlamaForCausalLM", {"num_key_value_heads": 1, "head_dim": 32}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", {**GEMMA, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3ForCausalLM", {**GEMMA, "tie_word_embeddings": True}),
}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 16}


def check(file, model, **how):
    loaded = load_model(file, device="cpu", **how)
    assert w.relative_error(w.logits(loaded), w.logits(model)) < 1e-5
    return loaded


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name, tmp_path):
    class_name, changes = MODELS[name]
    model = w.tiny_model(class_name, **changes)
    file = g.write_gguf(tmp_path / "m.gguf", model, ("Q4_0", "Q8_0", "Q5_1"))
    loaded = check(file, model)
    layers = [m for m in loaded.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == len(w.linears(model, lm_head=True))
    assert not [m for m in loaded.modules() if type(m) is torch.nn.Linear]
    assert isinstance(loaded.get_input_embeddings(), QuantizedEmbedding)
    assert type(loaded).__name__ == class_name


@pytest.mark.parametrize(
    "qtypes", [g.QUANTIZABLE, ("Q2_K", "Q3_K", "Q4_K", "Q5_K"), ("Q6_K", "IQ4_XS", "IQ4_NL")]
)
def test_every_type(qtypes, tmp_path, format_result):
    model = w.tiny_model(**WIDE)
    file = g.write_gguf(tmp_path / "m.gguf", model, qtypes, embedding="Q6_K")
    loaded = check(file, model)
    explained = str(qcore.explain(loaded))
    for qtype in qtypes:
        assert f"gguf {qtype} weights" in explained
    error = w.relative_error(w.logits(loaded), w.logits(model))
    format_result(file, loaded, error, 1e-5, tool="gguf")


@pytest.mark.parametrize("plain", ["F32", "F16"])
def test_plain_tensors_stay_plain(plain, tmp_path):
    model = w.tiny_model("Gemma3ForCausalLM", **GEMMA, tie_word_embeddings=True)
    file = g.write_gguf(tmp_path / "m.gguf", model, ("Q8_0", plain), embedding=plain)
    loaded = check(file, model)
    kinds = {type(module) for module in loaded.modules()}
    assert {QuantizedLinear, torch.nn.Linear} <= kinds
    assert QuantizedEmbedding not in kinds
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_nothing_quantized(tmp_path):
    model = w.tiny_model()
    file = g.write_gguf(tmp_path / "m.gguf", model, ("F32",), embedding="F32")
    loaded = check(file, model)
    assert not qcore.explain(loaded).rows


def test_the_tied_output_and_the_embedding_are_one_tensor(tmp_path):
    model = w.tiny_model(tie_word_embeddings=True)
    loaded = check(g.write_gguf(tmp_path / "m.gguf", model), model)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert not qcore.explain(loaded).notes
    assert loaded.generate(torch.tensor([[3, 4]]), max_new_tokens=4).shape == (1, 6)


ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_scaling(name, tmp_path):
    model = w.tiny_model(rope_parameters=ROPES[name])
    extra = {}
    if name != "llama3":
        extra = {"rope__scaling__type": name, "rope__scaling__factor": 4.0}
    if name == "yarn":
        extra["rope__scaling__original_context_length"] = 32
    file = g.write_gguf(tmp_path / "m.gguf", model, **extra)
    loaded = load_model(file, device="cpu")
    ids = torch.arange(3, 83).reshape(2, 40)
    with torch.no_grad():
        assert w.relative_error(loaded(ids).logits, model(ids).logits) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_of_another_kind_is_dequantized(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("qcore.models.load.embedding_scale", lambda module: (False, None))
    monkeypatch.setattr("qcore.models.gguf_checkpoint._PART", 1024)
    model = w.tiny_model("Gemma3ForCausalLM", **GEMMA, tie_word_embeddings=True)
    loaded = load_model(g.write_gguf(tmp_path / "m.gguf", model), device="cpu", dtype=dtype)
    weight = loaded.model.embed_tokens.weight
    assert torch.equal(weight, model.model.embed_tokens.weight.to(dtype))
    assert isinstance(loaded.lm_head, QuantizedLinear)


def test_in_bfloat16(tmp_path):
    model = w.tiny_model("Gemma3ForCausalLM", **GEMMA, tie_word_embeddings=True)
    file = g.write_gguf(tmp_path / "m.gguf", model)
    loaded = load_model(file, device="cpu", dtype="bfloat16")
    assert w.logits(loaded).dtype == torch.bfloat16
    assert w.relative_error(w.logits(loaded).float(), w.logits(model)) < 0.05


def test_reading_needs_no_other_package(tmp_path, monkeypatch):
    model = w.tiny_model()
    file = g.write_gguf(tmp_path / "m.gguf", model)
    monkeypatch.setitem(sys.modules, "gguf", None)
    check(file, model)


# -- where the file is -------------------------------------------------------------------------


def test_folders(tmp_path):
    model = w.tiny_model()
    g.write_gguf(tmp_path / "one.gguf", model)
    check(tmp_path, model)
    g.write_gguf(tmp_path / "two.gguf", model)
    check(tmp_path, model, gguf_file="two.gguf")
    with pytest.raises(errors.CheckpointError, match=r"several GGUF files \(one.gguf, two.gguf\)"):
        load_model(tmp_path, device="cpu")
    with pytest.raises(errors.CheckpointError, match=r"three.gguf: not there"):
        load_model(tmp_path, device="cpu", gguf_file="three.gguf")
    with pytest.raises(errors.CheckpointError, match="not in the folder"):
        load_model(tmp_path, device="cpu", gguf_file="../one.gguf")
    with pytest.raises(errors.CheckpointError, match="no folder"):
        load_model(tmp_path / "one.gguf", device="cpu", gguf_file="one.gguf")


def test_a_model_in_parts(tmp_path):
    model = w.tiny_model(tie_word_embeddings=True)
    g.write_gguf(tmp_path / "m.gguf", model, split=5)
    parts = sorted(file.name for file in tmp_path.iterdir())
    assert parts == [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    check(tmp_path / parts[0], model)
    (tmp_path / "mmproj-m.gguf").write_bytes(b"")
    check(tmp_path, model)
    assert len(inspect_checkpoint(tmp_path / parts[0]).layers) == 15


def test_where_text_ends(tmp_path):
    model = w.tiny_model()
    file = g.write_gguf(tmp_path / "m.gguf", model)
    assert load_model(file, device="cpu").generation_config.eos_token_id == 2
    file = g.write_gguf(tmp_path / "n.gguf", model, eot=7)
    assert load_model(file, device="cpu").generation_config.eos_token_id == [2, 7]


def test_inspection(tmp_path):
    model = w.tiny_model(tie_word_embeddings=True)
    file = g.write_gguf(tmp_path / "m.gguf", model, ("Q4_0", "Q8_0"))
    report = inspect_checkpoint(file)
    assert report.method == "gguf"
    assert report.architecture == "LlamaForCausalLM"
    assert len(report.layers) == 15
    assert report.quantized_bytes + report.other_bytes < file.stat().st_size
    text = str(report)
    assert "gguf: Q4_0, Q8_0" in text or "gguf: Q8_0, Q4_0" in text
    assert "lm_head" in text


@pytest.mark.slow
@pytest.mark.skipif("QCORE_TEST_GGUF" not in os.environ, reason="QCORE_TEST_GGUF names no file")
def test_a_real_file_agrees_with_transformers():
    from pathlib import Path

    import transformers

    file = Path(os.environ["QCORE_TEST_GGUF"])
    started = time.perf_counter()
    model = load_model(file, device="cpu")
    assert time.perf_counter() - started < 30
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    ids = torch.tensor([[2, 818, 5279, 529, 7001, 563]])
    with torch.no_grad():
        assert w.relative_error(model(ids).logits, theirs(ids).logits) < 1e-5
