"""`from_pretrained` through qcore gives what `load_model` gives."""

from __future__ import annotations

import checkpoint_writers as w
import moe_writers as m
import pytest
import qcore.transformers as qt
import torch
import transformers
from qcore import errors, explain, load_model
from qcore.quantization import QuantizedExperts, QuantizedLinear
from qcore.transformers import QcoreConfig
from transformers_cases import FLOATS, INTEGERS, AutoLM, from_pretrained, same, write, write_renamed


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    assert not qt.enabled()


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS])
def test_the_same_bits_as_load_model(tmp_path, name):
    folder = write(tmp_path, name)
    expected = load_model(folder, device="cpu")
    same(from_pretrained(folder), expected)
    assert len(explain(expected).rows) == 14
    with qt.enable():
        same(AutoLM.from_pretrained(folder), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "auto"])
def test_dtype(tmp_path, dtype):
    folder = write(tmp_path, "gptq", dtype="bfloat16")
    loaded = from_pretrained(folder, dtype=dtype)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    assert loaded.dtype == loaded.config.dtype == dtype
    same(loaded, load_model(folder, dtype=dtype))


def test_dtype_that_the_method_does_not_take(tmp_path):
    with pytest.raises(errors.UnsupportedQuantizationError, match="float64 is not supported"):
        from_pretrained(write(tmp_path, "gptq"), dtype=torch.float64)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"])
def test_architectures_and_tied_weights(tmp_path, name, tied):
    folder = write(tmp_path, "w4a16", w.tiny_model(name, tie_word_embeddings=tied))
    loaded = from_pretrained(folder)
    same(loaded, load_model(folder))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.config.tie_word_embeddings == tied


@pytest.mark.parametrize("tied_by_config", [False, True])
def test_quantized_lm_head_is_not_tied(tmp_path, tied_by_config):
    model = w.tiny_model()
    tensors = w.quantize_model(model, w.gptq_tensors, lm_head=True)
    folder = w.write_folder(
        tmp_path, model, tensors, w.gptq_config(lm_head=True), tie_word_embeddings=tied_by_config
    )
    loaded = from_pretrained(folder)
    same(loaded, load_model(folder))
    assert ("not tied" in str(explain(loaded))) == tied_by_config
    loaded.tie_weights()
    assert isinstance(loaded.lm_head, QuantizedLinear)


def test_tied_by_config_but_different_in_the_file(tmp_path):
    folder = write(tmp_path, "gptq", tie_word_embeddings=True)
    same(from_pretrained(folder), load_model(folder))


@pytest.mark.parametrize("architecture", m.SIZES)
@pytest.mark.parametrize("quantized", [True, False])
def test_mixtures(tmp_path, architecture, quantized):
    model = m.tiny_mixture(architecture)
    if quantized:
        tensors = m.quantize_mixture(model, w.gptq_tensors)
    else:
        tensors = m.plain_mixture(model)
        name, module = next(one for one in w.linears(model) if one[0].endswith("q_proj"))
        r = w.quantize(module.weight)
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{k}": v for k, v in w.gptq_tensors(r).items()}
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config())
    loaded = from_pretrained(folder)
    same(loaded, load_model(folder))
    experts = [one for one in loaded.modules() if isinstance(one, QuantizedExperts)]
    assert len(experts) == (2 if quantized else 0)


def test_names_that_transformers_changes(tmp_path):
    folder = write_renamed(tmp_path)
    loaded = from_pretrained(folder, cls=transformers.AutoModelForImageTextToText)
    same(loaded, load_model(folder))
    assert len(explain(loaded).rows) == 14


# -- models that are not the checkpoint's class ------------------------------------------------


def test_a_model_without_its_head(tmp_path):
    folder = write(tmp_path, "gptq")
    expected = load_model(folder)
    loaded, info = transformers.AutoModel.from_pretrained(
        folder, quantization_config=QcoreConfig(), output_loading_info=True
    )
    assert set(info["unexpected_keys"]) == {"lm_head.weight"}
    assert not info["missing_keys"]
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        got, wanted = loaded(ids), expected.model(ids)
    assert torch.equal(got.last_hidden_state, wanted.last_hidden_state)
    assert next(row.layer for row in explain(loaded).rows) == "layers.0.self_attn.q_proj"


def test_a_model_with_another_head(tmp_path):
    folder = write(tmp_path, "w4a16")
    loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=QcoreConfig(), num_labels=3, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight"}
    assert set(info["unexpected_keys"]) == {"lm_head.weight"}
    assert type(loaded.score) is torch.nn.Linear
    assert len(explain(loaded).rows) == 14
    with torch.no_grad():
        assert loaded(torch.arange(1, 13)[None]).logits.isfinite().all()


def test_a_checkpoint_without_the_base_models_prefix(tmp_path):
    model = w.tiny_model("LlamaForCausalLM")
    tensors = w.quantize_model(model, w.gptq_tensors)
    base = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    folder = w.write_folder(tmp_path, model, base, w.gptq_config(), architectures=["LlamaModel"])
    loaded, info = AutoLM.from_pretrained(
        folder, quantization_config=QcoreConfig(), output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    assert not info["unexpected_keys"]
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        got, wanted = loaded.model(ids), model.model(ids)
    assert w.relative_error(got.last_hidden_state, wanted.last_hidden_state) < 1e-5


def test_what_is_missing_inside_is_an_error(tmp_path):
    model = w.tiny_model()
    tensors = w.quantize_model(model, w.gptq_tensors)
    tensors = {k: v for k, v in tensors.items() if not k.startswith("model.layers.1.mlp.up_proj.")}
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config())
    for cls in (AutoLM, transformers.AutoModel):
        with pytest.raises(
            errors.CheckpointError, match=r"layers\.1\.mlp\.up_proj\.qweight .*miss"
        ):
            from_pretrained(folder, cls=cls)


def test_quantized_tensors_that_nobody_takes_are_an_error(tmp_path):
    """Otherwise transformers would fill the layer with random numbers, and only warn."""
    model = w.tiny_model()
    tensors = w.quantize_model(model, w.gptq_tensors, lm_head=True)
    other = {k.replace("up_proj", "other_proj"): v.clone() for k, v in tensors.items()}
    folder = w.write_folder(tmp_path / "a", model, {**other, **tensors}, w.gptq_config())
    for cls in (AutoLM, transformers.AutoModel):
        with pytest.raises(errors.CheckpointError, match=r"unexpected: .*other_proj\.g_idx"):
            from_pretrained(folder, cls=cls)
    folder = w.write_folder(tmp_path / "b", model, tensors, w.gptq_config(lm_head=True))
    loaded = transformers.AutoModel.from_pretrained(folder, quantization_config=QcoreConfig())
    assert len(explain(loaded).rows) == 14
