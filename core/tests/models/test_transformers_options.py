"""Options, refusals, and how qcore comes into transformers and leaves it."""

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
import pytest
import qcore.transformers as qt
import torch
import transformers
from qcore import Settings, errors, explain, load_model
from qcore.models import fp8_cache
from qcore.quantization import QuantizedLinear
from qcore.transformers import QcoreConfig
from transformers.quantizers import auto
from transformers_cases import AutoLM, from_pretrained, same, write


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    assert not qt.enabled()


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
    assert hasattr(loaded.model.layers, "_hf_hook")
    assert torch.equal(w.logits(loaded), w.logits(load_model(folder)))
    split |= {"model.layers": "disk"}
    with pytest.raises(errors.TargetError, match=r"layers\.0\.self_attn\.q_proj on 'disk'"):
        from_pretrained(folder, device_map=split, offload_folder=tmp_path / "offload")


def test_hooks_of_accelerate_are_kept(gptq_folder, tmp_path):
    folder, _ = gptq_folder
    layer = ["self_attn", "input_layernorm", "post_attention_layernorm"]
    layer += ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj", "mlp.act_fn"]
    names = [f"model.layers.0.{name}" for name in layer]
    names += ["model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb"]
    split = {**dict.fromkeys(names, "cpu"), "lm_head": "disk"}
    loaded = from_pretrained(folder, device_map=split, offload_folder=tmp_path / "offload")
    assert hasattr(loaded.model.layers[0].mlp.up_proj, "_hf_hook")
    assert torch.equal(w.logits(loaded), w.logits(load_model(folder)))


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


def test_a_snapshot_of_the_hub(gptq_folder, tmp_path):
    """As the hub's cache lays it out: links into a folder of blobs."""
    folder, _ = gptq_folder
    at = tmp_path / "hub" / "models--someone--model"
    (at / "blobs").mkdir(parents=True)
    (at / "refs").mkdir()
    snapshot = at / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (at / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(sorted(folder.iterdir())):
        (at / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(at / "blobs" / str(number))
    how = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    loaded = from_pretrained("someone/model", **how)
    same(loaded, load_model(folder))
    loaded.save_pretrained(tmp_path / "saved")
    same(load_model(tmp_path / "saved"), loaded)


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
