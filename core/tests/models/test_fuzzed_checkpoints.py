"""Damaged checkpoints of every format load or are refused; see `fuzzing` for what is watched.

What longer runs found stands below as it was found.
"""

from __future__ import annotations

import contextlib
import json
import socket

import checkpoint_writers as w
import float_writers as f
import fuzzing as z
import pytest
import tool_writers as t
import torch
from qcore.errors import CheckpointError, QcoreError
from qcore.models import checkpoint as checkpoint_module
from qcore.models import inspect_checkpoint, load_model
from qcore.models.skeleton import _without_orders
from safetensors.torch import load_file, save_file

SEEDS = 12


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """``good(kind)``: the folder of an undamaged checkpoint, which was read once."""
    base = tmp_path_factory.mktemp("good")

    def write(kind):
        folder = base / kind.replace(" ", "-")
        if not folder.exists():
            z.KINDS[kind](folder)
            inspect_checkpoint(folder, target="cpu")
            load_model(folder, device="cpu")
            z.read(folder)
        return folder

    return write


@pytest.mark.parametrize("kind", z.KINDS)
def test_damaged_checkpoints(kind, good, tmp_path):
    found = [z.run(kind, f"{kind}-{i}", good(kind), tmp_path / "x") for i in range(SEEDS)]
    assert not [broken for broken in found if broken is not None]


def test_the_watcher_sees(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (tmp_path / "in").mkdir()

    def wrong():
        raise KeyError("x")

    def long():
        raise QcoreError("x" * 30_000)

    for act, text in (
        (outside.read_text, "open .*outside"),
        (lambda: socket.getaddrinfo("localhost", 1), "socket.getaddrinfo"),
        (wrong, "KeyError"),
        (long, "a message of 30000"),
        (lambda: bytearray(8 * 2**30), "MemoryError"),
    ):
        with pytest.raises(z.Broken, match=text), z.watched(tmp_path / "in"):
            act()
    with pytest.raises(QcoreError, match="as it"), z.watched(tmp_path / "in"):
        raise QcoreError("as it should be")


# -- found by fuzzing ------------------------------------------------------------------------------


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def plain(tmp_path):
    model = w.tiny_model()
    return w.write_folder(tmp_path / "plain", model, model.state_dict())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_type": ["llama"]}, r"model_type is \['llama'\], no name"),
        ({"model_type": {}}, "model_type is {}, no name"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, as in no model"),
        ({"num_hidden_layers": 10**6}, "it would have more than .* parameters"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"text_config": {"num_experts": 10**9}}, "num_experts is 1000000000"),
        ({"hidden_size": 2**20}, "it would have .* weights; the checkpoint has"),
        ({"vocab_size": 2**40}, "it would have .* weights; the checkpoint has"),
        ({"head_dim": 2**33}, "buffers would take"),
        ({"get_text_config": 3}, "'get_text_config' cannot be a field"),
        ({"__class__": 3}, "'__class__' cannot be a field"),
        ({"dtype": [[[[["float32"]]]]]}, "dtype is"),
        ({"dtype": "_dynamo"}, "dtype is '_dynamo'"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures is"),
    ],
)
def test_configs_that_ask_for_too_much(plain, fields, text):
    change(plain, **fields)
    with pytest.raises(CheckpointError, match=text), z.watched(plain):
        load_model(plain, device="cpu")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"bits": 10**30}, "bits is 1000"),
        ({"group_size": 2**40}, "group_size is .* below 2"),
        ({"dynamic": {"(a+)+$": {}, "x" * 3000: {}}}, "3000 characters"),
        ({"quant_method": "x" * 10**6}, "no quantization method is called 'xxx"),
    ],
)
def test_quantization_configs(tmp_path, fields, text):
    model = w.tiny_model(num_hidden_layers=1)
    tensors = w.quantize_model(model, w.gptq_tensors)
    w.write_folder(tmp_path / "x", model, tensors, w.gptq_config(**fields))
    for read in (inspect_checkpoint, load_model):
        with pytest.raises(QcoreError, match=text) as caught, z.watched(tmp_path / "x"):
            read(tmp_path / "x")
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_a_shape_that_is_stated_by_no_integers(tmp_path, dtype):
    model = w.tiny_model(num_hidden_layers=1)
    tensors = f.quantize_model(model, t.hqq_layer)
    name = next(name for name in tensors if name.endswith(".shape"))
    tensors[name] = torch.tensor([float("nan"), 1.0]).to(dtype)
    w.write_folder(tmp_path / "x", model, tensors, t.hqq_config())
    with pytest.raises(CheckpointError, match="a shape is stated by a row of integers"):
        inspect_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"nested_blocksize": 2**50}, None),  # no more than there is
        ({"nested_blocksize": 10**41}, "an integer of 42 digits"),
        ({"shape": [10**30, 64]}, "weight has shape|quant_state says"),
        ({"x": " " * 70_000}, "quant_state has 7"),
    ],
)
def test_the_json_in_a_tensor(tmp_path, state, text):
    model = w.tiny_model(num_hidden_layers=1)
    tensors = f.quantize_model(model, lambda x: t.bnb_4bit(x, double=True, **state))
    w.write_folder(tmp_path / "x", model, tensors, t.bnb_config(bnb_4bit_use_double_quant=True))
    with z.watched(tmp_path / "x"):
        if text is None:
            with contextlib.suppress(CheckpointError):
                load_model(tmp_path / "x", device="cpu")
            return
        with pytest.raises(CheckpointError, match=text):
            load_model(tmp_path / "x", device="cpu")


# -- code, links, names ----------------------------------------------------------------------------


def test_code_of_the_checkpoint_and_of_the_hub_is_never_asked_for(plain, monkeypatch):
    """transformers would fetch a kernel, and ask at the terminal whether to run a model's code."""
    from transformers import modeling_utils

    hub = {"attn_implementation": "someone/kernels", "_attn_implementation": "someone/kernels"}
    hub |= {"experts_implementation": "someone/kernels", "trust_remote_code": True}
    own = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    change(plain, auto_map=own, **hub)
    assert _without_orders({"a": [{"text_config": {"auto_map": own, "b": 1, **hub}}]}) == {
        "a": [{"text_config": {"b": 1}}]
    }
    (plain / "code.py").write_text("raise SystemExit('run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(
        modeling_utils, "lazy_import_flash_attention", lambda *_, **__: pytest.fail("fetched")
    )
    with z.watched(plain):
        model = load_model(plain, device="cpu")
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(model.config, "auto_map")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "quant_config.json"])
def test_links_that_lead_out_of_the_folder(plain, name):
    outside = plain.parent / "outside.json"
    outside.write_text((plain / "config.json").read_text())
    (plain / name).unlink(missing_ok=True)
    (plain / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="outside the folder; not followed"):
        load_model(plain, device="cpu")


def test_a_gguf_file_that_is_a_link_in_a_folder(tmp_path):
    (tmp_path / "outside.gguf").write_bytes(b"GGUF")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model.gguf").symlink_to(tmp_path / "outside.gguf")
    with pytest.raises(CheckpointError, match="outside the folder"):
        load_model(tmp_path / "x", device="cpu")


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_shard_under_many_names_is_read_once(plain, monkeypatch):
    (plain / "model.safetensors").rename(plain / "a.safetensors")
    (plain / "b.safetensors").symlink_to("a.safetensors")
    names = list(load_file(plain / "a.safetensors"))
    shards = ["a.safetensors", "b.safetensors", "./a.safetensors", ".//a.safetensors"]
    index(plain, {name: shards[i % 4] for i, name in enumerate(names)})
    read = []
    real = checkpoint_module.read_header
    monkeypatch.setattr(checkpoint_module, "read_header", lambda x: read.append(x) or real(x))
    load_model(plain, device="cpu")
    assert len(read) == 1
    index(plain, {f"{i}": "./" * i + "a.safetensors" for i in range(5000)})
    with pytest.raises(CheckpointError, match=r"'0' should be in a\.safetensors"):
        load_model(plain, device="cpu")
    index(plain, {name: "./" * i + "a.safetensors" for i, name in enumerate(names * 1)})
    monkeypatch.setattr(checkpoint_module, "_MAX_SHARDS", 3)
    with pytest.raises(CheckpointError, match="more than 3 names of shards"):
        load_model(plain, device="cpu")


@pytest.mark.parametrize("shard", ["x/../../outside.safetensors", "..", "", ".", "x" * 5000])
def test_names_of_shards(plain, shard):
    (plain / "model.safetensors").unlink()
    index(plain, {"a": shard})
    with pytest.raises(
        CheckpointError, match=r"not in the folder|no regular file|cannot be|not there"
    ):
        load_model(plain, device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_named_and_never_read(plain, name):
    (plain / "model.safetensors").rename(plain / name)
    for path in (plain, plain / name):
        with pytest.raises(CheckpointError, match=r"Convert them to safetensors") as caught:
            load_model(path, device="cpu")
        assert name in str(caught.value)
    index(plain, {"a": name})
    with pytest.raises(CheckpointError, match="one of the pickles"):
        load_model(plain, device="cpu")


@pytest.mark.parametrize(
    "name", ["\x1b]0;owned\x07.weight", "a" * 300 + ".weight", "a." * 40 + "w"]
)
def test_names_that_no_tensor_has(plain, name):
    tensors = load_file(plain / "model.safetensors")
    save_file({**tensors, name: torch.zeros(1)}, plain / "model.safetensors")
    with pytest.raises(CheckpointError, match="name") as caught:
        inspect_checkpoint(plain)
    assert "\x1b" not in str(caught.value)


def test_a_layer_with_a_number_of_thousands_of_digits(plain):
    tensors = load_file(plain / "model.safetensors")
    tensors |= {f"model.layers.{'9' * 190}.mlp.experts.{'8' * 20}.w1.qweight": torch.zeros(1)}
    save_file(tensors, plain / "model.safetensors")
    change(plain, quantization_config=w.gptq_config())
    inspect_checkpoint(plain)
