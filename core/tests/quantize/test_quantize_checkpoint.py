import json
import shutil

import pytest
import torch
from qcore.errors import CheckpointError, ConfigError, QcoreError
from qcore.quantize import quantize_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file

LAYER_SUFFIXES = {
    "int4-g32": {"weight_packed", "weight_scale", "weight_shape"},
    "int4-asym-g32": {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"},
    "int8-channel": {"weight_packed", "weight_scale", "weight_shape"},
    "int8": {"weight", "weight_scale"},
}


def read_all(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("scheme", LAYER_SUFFIXES)
def test_linear_layers_are_rounded_and_the_rest_is_copied(llama, tmp_path, scheme):
    report = quantize_checkpoint(llama, tmp_path / "out", scheme=scheme)
    before, after = read_all(llama), read_all(tmp_path / "out")
    assert len(report.layers) == 14
    for layer in report.layers:
        mine = {name.removeprefix(f"{layer.name}.") for name in after if f"{layer.name}." in name}
        assert mine == LAYER_SUFFIXES[scheme]
        N, K = layer.shape
        assert before[f"{layer.name}.weight"].shape == (N, K)
        if scheme == "int8":
            assert after[f"{layer.name}.weight"].dtype == torch.int8
            assert after[f"{layer.name}.weight_scale"].shape == (N, 1)
    names = {layer.name for layer in report.layers}
    rest = {name for name in before if name.rpartition(".")[0] not in names}
    assert "lm_head.weight" in rest
    for name in rest:
        assert torch.equal(before[name], after[name])
    assert report.bytes_before == sum(t.nbytes for t in before.values())
    assert report.bytes_after == sum(t.nbytes for t in after.values())


def test_the_config_says_what_was_done(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    config = config_of(tmp_path / "out")
    quantization = config.pop("quantization_config")
    assert config == config_of(llama)
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    assert quantization["quantization_status"] == "compressed"
    assert quantization["ignore"] == ["lm_head"]
    assert list(quantization["config_groups"]) == ["group_0"]
    assert quantization["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_companions_come_along_and_nothing_else(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer_config.json", "generation_config.json", "LICENSE"} <= names
    assert "training.bin" not in names


def test_groups_that_do_not_divide_stay_in_float_and_are_reported(llama, tmp_path):
    report = quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g64")
    kept = {layer.name: layer.reason for layer in report.kept if not layer.asked_for}
    assert set(kept) == {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}
    assert "groups of 32, 16, 8 would fit" in kept["model.layers.0.mlp.down_proj"]
    ignored = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert ignored == ["lm_head", *sorted(kept)]
    assert "down_proj" in report.render()


def test_ignored_layers(llama, tmp_path):
    ignore = ["model.layers.1.mlp.up_proj", "re:.*self_attn"]
    report = quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32", ignore=ignore)
    assert len(report.layers) == 14 - 1 - 8
    ignored = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert len(ignored) == 1 + 1 + 8
    assert not any(name.startswith("re:") for name in ignored)


@pytest.mark.parametrize("ignore", ["model.layers.9.mlp.up_proj", "re:nothing", "re:("])
def test_an_ignored_name_that_fits_nothing_is_an_error(llama, tmp_path, ignore):
    with pytest.raises(ConfigError, match=r"fits no linear layer|no regular expression"):
        quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32", ignore=[ignore])


# -- the head ----------------------------------------------------------------------------------


def test_a_tied_head_gets_its_own_weight(tied_llama, tmp_path):
    assert len(list(tied_llama.glob("*.safetensors"))) > 1
    report = quantize_checkpoint(
        tied_llama, tmp_path / "out", scheme="int4-g32", lm_head_scheme="int8-channel"
    )
    before, after = read_all(tied_llama), read_all(tmp_path / "out")
    assert "lm_head.weight" not in before
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert after["lm_head.weight_packed"].shape == (120, 16)
    config = config_of(tmp_path / "out")
    assert config["tie_word_embeddings"] is False
    groups = config["quantization_config"]["config_groups"]
    assert groups["group_0"]["targets"] == ["lm_head"]
    assert groups["group_0"]["weights"]["num_bits"] == 8
    assert groups["group_1"]["targets"] == ["Linear"]
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert config["quantization_config"]["ignore"] == []
    assert "lm_head" in {layer.name for layer in report.layers}


def test_a_tied_head_that_is_not_asked_for_stays_tied(tied_llama, tmp_path):
    report = quantize_checkpoint(tied_llama, tmp_path / "out", scheme="int4-g32")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is True
    assert "lm_head" in config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert report.kept == ()


def test_an_own_head_in_the_same_scheme(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32", lm_head=True)
    after = read_all(tmp_path / "out")
    assert "lm_head.weight" not in after
    assert "lm_head.weight_packed" in after
    groups = config_of(tmp_path / "out")["quantization_config"]["config_groups"]
    assert groups["group_0"]["targets"] == ["lm_head", "Linear"]


def test_formats_that_differ_are_called_mixed(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32", lm_head_scheme="int8")
    quantization = config_of(tmp_path / "out")["quantization_config"]
    assert quantization["format"] == "mixed-precision"
    formats = {group["format"] for group in quantization["config_groups"].values()}
    assert formats == {"pack-quantized", "int-quantized"}


# -- shards and progress -----------------------------------------------------------------------


def test_many_shards_hold_the_same_as_one(llama, tmp_path, monkeypatch):
    quantize_checkpoint(llama, tmp_path / "one", scheme="int4-asym-g32")
    monkeypatch.setattr("qcore.quantize.checkpoint.MAX_SHARD_BYTES", 20_000)
    report = quantize_checkpoint(llama, tmp_path / "many", scheme="int4-asym-g32")
    one, many = read_all(tmp_path / "one"), read_all(tmp_path / "many")
    assert report.shards > 1
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_progress_reaches_the_total(llama, tmp_path):
    seen = []
    report = quantize_checkpoint(
        llama, tmp_path / "out", scheme="int4-g32", progress=lambda *step: seen.append(step)
    )
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[0][1] == report.bytes_before


def test_the_report_in_words_and_in_json(llama, tmp_path):
    report = quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    assert "14 int4-g32" in str(report)
    assert report.worst.name in str(report)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["layers"][0]["shape"]
    assert plain["dest"] == str(tmp_path / "out")


# -- what is refused ---------------------------------------------------------------------------


@pytest.fixture
def copied(llama, tmp_path):
    """The checkpoint, to be spoilt."""
    shutil.copytree(llama, tmp_path / "source")
    return tmp_path / "source"


def change_config(folder, **changes):
    config = config_of(folder)
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def spoil_quantized(folder):
    change_config(
        folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}
    )


def spoil_marked(folder):
    (folder / "hf_quant_config.json").write_text("{}")


def spoil_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def spoil_header(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def spoil_missing_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_config(folder):
    (folder / "config.json").write_text("[" * 100_000)


def spoil_no_config(folder):
    (folder / "config.json").unlink()


def spoil_architecture(folder):
    change_config(folder, architectures=["MyOwnModel"], auto_map={"AutoModel": "code.MyOwnModel"})


def spoil_no_architecture(folder):
    change_config(folder, architectures=None)


def spoil_shape(folder):
    change_config(folder, intermediate_size=64)


def spoil_nan(folder):
    tensors = read_all(folder)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_dtype(folder):
    tensors = read_all(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def index(folder, where):
    names = list(read_all(folder))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where(names)}))


def spoil_index_path(folder):
    index(folder, lambda names: dict.fromkeys(names, "../source/other.safetensors"))


def spoil_index_type(folder):
    index(folder, lambda names: dict.fromkeys(names, 3))


def spoil_index_pickle(folder):
    index(folder, lambda names: dict.fromkeys(names, "pytorch_model.bin"))


def spoil_index_absent_file(folder):
    index(folder, lambda names: dict.fromkeys(names, "absent.safetensors"))


def spoil_index_absent_tensor(folder):
    index(folder, lambda names: dict.fromkeys([*names, "ghost"], "other.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_quantized, r"quantized already \((auto_)?gptq\)"),
        (spoil_marked, r"hf_quant_config\.json, so it is quantized already"),
        (spoil_pickle, r"only as pickles \(pytorch_model\.bin"),
        (spoil_truncated, "cut short|bytes"),
        (spoil_header, "not a safetensors file"),
        (spoil_missing_weights, "no weights|only as pickles"),
        (spoil_config, "nested too deeply|no JSON"),
        (spoil_no_config, "not there"),
        (spoil_architecture, "which qcore never runs"),
        (spoil_no_architecture, "must name the model's class"),
        (spoil_shape, r"has shape \[96, 64\]; the model's .* needs \[64, 64\]|needs \[64, 64\]"),
        (spoil_nan, r"up_proj\.weight cannot be rounded: it holds NaN"),
        (spoil_dtype, "float8_e4m3fn: it is quantized already"),
        (spoil_index_path, "is not in the folder"),
        (spoil_index_type, "no file name"),
        (spoil_index_pickle, "Convert them to safetensors"),
        (spoil_index_absent_file, "not there"),
        (spoil_index_absent_tensor, "'ghost' should be in other"),
    ],
)
def test_a_bad_source_is_refused_and_leaves_nothing(copied, tmp_path, spoil, message):
    spoil(copied)
    with pytest.raises(CheckpointError, match=message):
        quantize_checkpoint(copied, tmp_path / "out", scheme="int4-g32")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_a_pickle_is_never_opened(copied, tmp_path, monkeypatch):
    (copied / "pytorch_model.bin").write_bytes(b"garbage")
    monkeypatch.setattr("pickle.load", None)
    monkeypatch.setattr("torch.load", None)
    assert quantize_checkpoint(copied, tmp_path / "out", scheme="int4-g32").layers


def test_a_failure_while_writing_leaves_what_was_there(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int8")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            llama, tmp_path / "out", scheme="int4-g32", overwrite=True, progress=stop
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert leftovers(tmp_path) == []


def test_overwriting(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int8")
    with pytest.raises(CheckpointError, match="exists already"):
        quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32", overwrite=True)
    assert config_of(tmp_path / "out")["quantization_config"]["format"] == "pack-quantized"
    assert leftovers(tmp_path) == []


def test_folders_in_the_way(llama, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for dest, message in (
        (tmp_path / "precious", "holds no config.json, so it is not replaced"),
        (tmp_path / "file", "is no folder"),
        (tmp_path / "absent" / "out", "no such folder"),
        (llama, "separate folders"),
        (llama / "inside", "separate folders"),
        (llama.parent, "separate folders"),
    ):
        with pytest.raises(CheckpointError, match=message):
            quantize_checkpoint(llama, dest, scheme="int4-g32", overwrite=True)
    quantize_checkpoint(llama, tmp_path / "empty", scheme="int4-g32")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_too_little_space(llama, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="are needed and 10 B are free"):
        quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    assert leftovers(tmp_path) == []


def test_nothing_left_to_quantize(llama, tmp_path):
    with pytest.raises(QcoreError, match="nothing is left to quantize"):
        quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32", ignore=["re:.*"])


# -- other spellings and models ----------------------------------------------------------------


def test_a_base_model_spells_its_layers_without_the_prefix(llama, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in read_all(llama).items()
        if name.startswith("model.")
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    quantize_checkpoint(source, tmp_path / "out", scheme="int4-g32")
    assert "layers.0.mlp.up_proj.weight_packed" in read_all(tmp_path / "out")


def test_tensors_of_another_model(llama, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    save_file({"foo.bar": torch.zeros(2, 2)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of its tensors .* 'foo\.bar'"):
        quantize_checkpoint(source, tmp_path / "out", scheme="int4-g32")


def test_experts_of_a_stacked_model_are_kept_and_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        vocab_size=64,
        max_position_embeddings=32,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "source")
    experts = [name for name in read_all(tmp_path / "source") if ".experts." in name]
    report = quantize_checkpoint(tmp_path / "source", tmp_path / "out", scheme="int4-g32")
    after = read_all(tmp_path / "out")
    assert len(report.layers) == 4
    assert experts
    assert all(name in after for name in experts)
    ignored = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert {name.removesuffix(".weight") for name in experts} <= set(ignored)


def test_memory_stays_below_the_size_of_the_model(llama, tmp_path, monkeypatch):
    """No more than one tensor of the source is alive at a time."""
    import weakref

    from qcore.quantize import checkpoint

    alive, most = [], 0
    read = checkpoint.read_tensor

    def watched(info):
        nonlocal most
        tensor = read(info)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(checkpoint, "read_tensor", watched)
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    assert most <= 2
