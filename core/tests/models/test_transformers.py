"""`from_pretrained` through qcore gives what `load_model` gives."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
import warnings

import checkpoint_writers as w
import float_writers as f
import moe_writers as m
import pytest
import qcore.transformers as qt
import tool_writers as t
import torch
import transformers
from qcore import Settings, errors, explain, load_model
from qcore.models import fp8_cache
from qcore.quantization import QuantizedExperts, QuantizedLinear
from qcore.transformers import QcoreConfig
from transformers.quantizers import auto

AutoLM = transformers.AutoModelForCausalLM


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    assert not qt.enabled()


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
    from safetensors.torch import load_file

    saved, tensors = load_file(tmp_path / "model.safetensors"), {}
    for name, tensor in saved.items():
        quantized = name.startswith("language_model.") and name.endswith("_proj.weight")
        packed = w.packed_tensors(w.quantize(tensor), True) if quantized else {"weight": tensor}
        prefix = name.removesuffix(".weight")
        tensors |= {f"{prefix}.{k}" if quantized else name: v for k, v in packed.items()}
    quantization = w.ct_config()
    quantization["config_groups"]["g"]["targets"] = [r"re:language_model\.model\..*_proj$"]
    folder = w.write_folder(tmp_path / "out", model, tensors, quantization)
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


# -- options -----------------------------------------------------------------------------------


def test_fields_reach_selection(gptq_folder, monkeypatch):
    folder, _ = gptq_folder
    loaded = from_pretrained(folder, QcoreConfig(target="cpu:avx2"))
    assert {str(row.decision.target) for row in explain(loaded).rows} == {"cpu:avx2"}
    (kernel,) = {row.kernel for row in explain(loaded).rows}
    named = QcoreConfig(disabled_kernels=["Other"]).selection_settings()
    assert named.source("disabled_kernels") == "QcoreConfig.disabled_kernels"
    for config in (
        QcoreConfig(disabled_kernels=[kernel]),
        QcoreConfig(settings=Settings(disabled_kernels=frozenset({kernel}))),
    ):
        with pytest.raises(errors.NoKernelError, match=kernel):
            from_pretrained(folder, config)
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", kernel)
    with pytest.raises(errors.NoKernelError, match=kernel):
        from_pretrained(folder)
    same(
        from_pretrained(folder, QcoreConfig(settings=Settings())),
        load_model(folder, settings=Settings()),
    )
    with pytest.raises(errors.TargetError, match="the target is cuda:sm_90"):
        from_pretrained(folder, QcoreConfig(target="cuda:sm_90"))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"settings": {"strict": True}}, errors.SettingsError, "settings is a dict"),
        ({"disabled_kernels": "Name"}, errors.SettingsError, "must be a list of class names"),
        ({"disabled_kernels": [1]}, errors.SettingsError, "must be a list of class names"),
        ({"target": "nowhere"}, errors.TargetError, "no platform is called 'nowhere'"),
    ],
)
def test_fields_are_checked(fields, error, message):
    with pytest.raises(error, match=message):
        QcoreConfig(**fields)


def test_the_config_can_be_copied(gptq_folder):
    config = QcoreConfig(Settings(strict=True), "cpu:avx2", ("Name",))
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert other.to_dict() == {"quant_method": "qcore"}
    assert "strict=True" in repr(config)
    loaded = from_pretrained(gptq_folder[0])
    again = pickle.loads(pickle.dumps(loaded.config))
    assert again.quantization_config.to_dict() == w.gptq_config()
    assert json.loads(loaded.config.to_json_string())["quantization_config"] == w.gptq_config()
    assert "gptq" in repr(loaded.config)
    twin = copy.deepcopy(loaded)
    assert torch.equal(w.logits(twin), w.logits(loaded))


def test_the_users_config_is_not_changed_and_serves_twice(gptq_folder, tmp_path):
    config = QcoreConfig()
    from_pretrained(gptq_folder[0], config)
    assert config == QcoreConfig()
    same(from_pretrained(write(tmp_path / "awq", "awq"), config), load_model(tmp_path / "awq"))


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}, "auto", "sequential"])
def test_device_map(gptq_folder, device_map):
    folder, _ = gptq_folder
    loaded = from_pretrained(folder, device_map=device_map, low_cpu_mem_usage=True)
    same(loaded, load_model(folder, device="cpu"))


def test_auto_counts_the_bytes_of_quantized_layers(gptq_folder, tmp_path):
    """Eight bytes a group and half a byte a weight: 14 layers take about 60 KiB, not 340."""
    folder, _ = gptq_folder
    loaded = from_pretrained(folder, device_map="auto", max_memory={"cpu": "200KB"})
    same(loaded, load_model(folder, device="cpu"))
    with pytest.raises(errors.TargetError, match="'disk', but its weights are packed"):
        from_pretrained(
            folder,
            device_map="auto",
            max_memory={"cpu": "70KB"},
            offload_folder=tmp_path / "offload",
        )


def test_offloading_to_disk(gptq_folder, tmp_path):
    folder, _ = gptq_folder
    split = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu"}
    split |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
    loaded = from_pretrained(folder, device_map=split, offload_folder=tmp_path / "offload")
    assert loaded.model.embed_tokens.weight.is_meta
    assert torch.equal(w.logits(loaded), w.logits(load_model(folder)))
    split |= {"model.layers": "disk"}
    with pytest.raises(errors.TargetError, match=r"layers\.0\.self_attn\.q_proj on 'disk'"):
        from_pretrained(folder, device_map=split, offload_folder=tmp_path / "offload")


def test_cpu_layers_beside_an_accelerator_are_refused():
    from qcore.transformers.placement import check_device_map, device_of

    split = {"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "cuda:1"}
    with pytest.raises(
        errors.TargetError, match=r"layers\.1\.x on the CPU and other layers on cuda"
    ):
        check_device_map(["model.layers.0.x", "model.layers.1.x"], split)
    check_device_map(["model.layers.0.x"], split)
    assert device_of("model.layers.0.x", split) == torch.device("cuda:0")
    assert device_of("model.layers.10.x", {"": "cpu", "model.layers.1": 1}) == torch.device("cpu")
    assert device_of("lm_head", split) == torch.device("cuda:1")


def test_generation_config_and_generate(gptq_folder):
    folder, _ = gptq_folder
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7, "eos_token_id": 95}')
    loaded, expected = from_pretrained(folder), load_model(folder)
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.generation_config == expected.generation_config
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(
        loaded.generate(ids, do_sample=False), expected.generate(ids, do_sample=False)
    )


def test_compiled_and_with_a_static_cache(gptq_folder):
    folder, _ = gptq_folder
    loaded, expected = from_pretrained(folder), load_model(folder)
    ids = torch.tensor([[3, 4, 5]])
    how = {"do_sample": False, "max_new_tokens": 4, "cache_implementation": "static"}
    assert torch.equal(loaded.generate(ids, **how), expected.generate(ids, **how))
    loaded.forward = torch.compile(loaded.forward, backend="eager", fullgraph=True)
    assert w.relative_error(w.logits(loaded), w.logits(expected)) < 1e-6


def test_pipelines(gptq_folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder, _ = gptq_folder
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(
        folder
    )
    how = {"do_sample": False, "max_new_tokens": 4}
    asked = {"quantization_config": QcoreConfig(), "dtype": torch.float32}
    pipe = transformers.pipeline("text-generation", model=str(folder), model_kwargs=asked)
    assert isinstance(pipe.model.model.layers[0].mlp.up_proj, QuantizedLinear)
    with qt.enable():
        other = transformers.pipeline("text-generation", model=str(folder), dtype=torch.float32)
    assert pipe("w3 w4", **how) == other("w3 w4", **how)


def test_scales_of_the_kv_cache_come_along(tmp_path):
    model = w.tiny_model()
    tensors = f.quantize_model(model, lambda weight: f.fp8_layer(weight, channel=True))
    for layer in range(2):
        for one in "kv":
            tensors[f"model.layers.{layer}.self_attn.{one}_scale"] = torch.tensor([0.5 + layer])
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    config = f.ct("float-quantized", {"strategy": "channel"}, kv_cache_scheme=scheme)
    folder = w.write_folder(tmp_path, model, tensors, config)
    loaded, expected = from_pretrained(folder), load_model(folder)
    same(loaded, expected)
    assert explain(loaded).notes == explain(expected).notes
    assert [layer.k_scale for layer in fp8_cache(loaded).layers] == [0.5, 1.5]


# -- what is refused ---------------------------------------------------------------------------


def test_training_is_refused(gptq_folder):
    loaded = from_pretrained(gptq_folder[0])
    with pytest.raises(ValueError, match="quantized"):
        transformers.Trainer(loaded)
    assert not loaded.hf_quantizer.is_trainable
    loaded(torch.tensor([[3, 4]]))
    loaded.model.embed_tokens.requires_grad_(True)
    with pytest.raises(errors.WeightError, match="no gradients"):
        loaded(torch.tensor([[3, 4]]))
    with torch.no_grad():
        loaded(torch.tensor([[3, 4]]))


def test_floats_do_not_come_back(gptq_folder):
    loaded = from_pretrained(gptq_folder[0])
    with pytest.raises(errors.UnsupportedQuantizationError, match="load the float model"):
        loaded.dequantize()
    with pytest.raises(errors.WeightError, match="moving"):
        loaded.to(torch.bfloat16)


def test_a_checkpoint_that_is_not_quantized(tmp_path):
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, model.state_dict())
    with pytest.raises(errors.UnsupportedQuantizationError, match="is not quantized"):
        from_pretrained(folder)
    with qt.enable():
        loaded = AutoLM.from_pretrained(folder)
    assert torch.equal(w.logits(loaded), w.logits(model))
    assert str(explain(loaded)) == "no quantized layers"


def test_a_state_dict_a_pickle_and_a_mesh(gptq_folder, tmp_path):
    folder, model = gptq_folder
    config = transformers.AutoConfig.from_pretrained(folder)
    with pytest.raises(errors.CheckpointError, match="state_dict="):
        transformers.LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=model.state_dict(), quantization_config=QcoreConfig()
        )
    config.distributed_config = object()
    from qcore.transformers import QcoreQuantizer

    quantizer = QcoreQuantizer(QcoreConfig())
    model.config = config
    with pytest.raises(errors.UnsupportedQuantizationError, match="distributed_config"):
        quantizer.preprocess_model(model)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises((errors.CheckpointError, OSError)):
        from_pretrained(folder)


def test_a_config_in_a_file_of_its_own(gptq_folder):
    folder, _ = gptq_folder
    expected = load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    del quantization["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(quantization))
    loaded = from_pretrained(folder)
    same(loaded, expected)
    assert loaded.config.quantization_config.to_dict() == w.gptq_config()


def test_a_failing_load_leaves_nothing(gptq_folder, monkeypatch):
    folder, _ = gptq_folder
    before = auto.AutoHfQuantizer.__dict__["merge_quantization_configs"]
    ignored = transformers.LlamaForCausalLM._keys_to_ignore_on_load_unexpected

    def fail(*_args, **_kwargs):
        raise RuntimeError("stop")

    monkeypatch.setattr("qcore.models.load.Loader.quantized", fail)
    with pytest.raises(RuntimeError, match="stop"), qt.enable():
        AutoLM.from_pretrained(folder)
    monkeypatch.undo()
    assert not qt.enabled()
    assert auto.AutoHfQuantizer.__dict__["merge_quantization_configs"] is before
    assert transformers.LlamaForCausalLM._keys_to_ignore_on_load_unexpected is ignored
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
    same(from_pretrained(folder), load_model(folder))


# -- enable, disable, register -----------------------------------------------------------------


def test_enable_and_disable(gptq_folder):
    folder, _ = gptq_folder
    assert not qt.enabled()
    with qt.enable(QcoreConfig(target="cpu:avx2")):
        assert qt.enabled()
        with qt.enable(QcoreConfig(target="cpu")):
            loaded = AutoLM.from_pretrained(folder)
            assert str(explain(loaded).rows[0].decision.target) == "cpu"
        loaded = AutoLM.from_pretrained(folder)
        assert str(explain(loaded).rows[0].decision.target) == "cpu:avx2"
        loaded = AutoLM.from_pretrained(folder, quantization_config=QcoreConfig(target="cpu"))
        assert str(explain(loaded).rows[0].decision.target) == "cpu"
    assert not qt.enabled()
    qt.enable()
    qt.enable()
    qt.disable()
    assert not qt.enabled()
    with pytest.raises(errors.SettingsError, match="takes a QcoreConfig or nothing"):
        qt.enable({"target": "cpu"})


def merge(stated, asked=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto.AutoHfQuantizer.merge_quantization_configs(stated, asked)


def test_others_checkpoints_and_configs_are_left_to_transformers():
    aqlm = {"quant_method": "aqlm", "in_group_size": 8}
    assert isinstance(merge(w.gptq_config()), transformers.GPTQConfig)
    with qt.enable():
        assert isinstance(merge(aqlm), transformers.AqlmConfig)
        assert isinstance(
            merge(w.gptq_config(), transformers.GPTQConfig(bits=4)), transformers.GPTQConfig
        )
        assert isinstance(merge(w.gptq_config()), QcoreConfig)
        assert isinstance(merge({"load_in_4bit": True}), QcoreConfig)
    assert isinstance(merge(w.gptq_config(), QcoreConfig()), QcoreConfig)


def test_methods_that_only_qcore_has(tmp_path):
    table = dict(auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    assert "modelopt" not in table
    model = w.tiny_model()
    tensors = f.quantize_model(model, lambda weight: f.fp8_layer(weight, input_scale=0.05))
    config = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
    folder = w.write_folder(tmp_path, model, tensors, config)
    with qt.enable():
        assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["modelopt"] is QcoreConfig
        loaded = AutoLM.from_pretrained(folder)
    same(loaded, load_model(folder))
    same(from_pretrained(folder), loaded)
    assert table == auto.AUTO_QUANTIZATION_CONFIG_MAPPING


def test_register_and_unregister():
    seam = lambda: auto.AutoHfQuantizer.__dict__["merge_quantization_configs"]  # noqa: E731
    ours = seam()
    qt.enable()
    qt.unregister()
    try:
        assert seam() is not ours
        assert seam().__func__.__module__ == "transformers.quantizers.auto"
        assert "qcore" not in auto.AUTO_QUANTIZER_MAPPING
        assert "qcore" not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING
        assert not qt.enabled()
        qt.unregister()
        auto.AUTO_QUANTIZER_MAPPING["qcore"] = object
        with pytest.raises(errors.RegistrationError, match="already"):
            qt.register()
    finally:
        auto.AUTO_QUANTIZER_MAPPING.pop("qcore", None)
        qt.register()
    qt.register()
    assert auto.AUTO_QUANTIZER_MAPPING["qcore"] is qt.QcoreQuantizer


def test_without_transformers():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import qcore\n"
        "try: import qcore.transformers\n"
        "except qcore.MissingDependencyError as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'qcore[models]'" in done.stderr


def test_notes_are_logged(tmp_path, caplog):
    model = w.tiny_model()
    tensors = w.quantize_model(model, w.gptq_tensors)
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.ones(96)
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config())
    with caplog.at_level(logging.WARNING, "qcore.transformers"):
        loaded = from_pretrained(folder)
    assert "has a bias in the checkpoint" in caplog.text
    same(loaded, load_model(folder))
