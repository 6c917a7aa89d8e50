"""A damaged, unsafe or lying checkpoint is refused: a typed error that says what and where."""

from __future__ import annotations

import json
import os

import checkpoint_writers as w
import pytest
import torch
from qcore import errors
from qcore.models import inspect_checkpoint, load_model
from qcore.models import load as load_module
from safetensors.torch import load_file, save_file

LAYER = "model.layers.0.self_attn.q_proj"


def edit_config(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def quantization(**changes):
    return lambda folder: edit_config(folder, lambda c: c["quantization_config"].update(changes))


def setting(**changes):
    return lambda folder: edit_config(folder, lambda c: c.update(changes))


def config_text(text):
    return lambda folder: (folder / "config.json").write_text(text)


def without(key):
    return lambda folder: edit_config(folder, lambda c: c.pop(key))


def tensors(change):
    def apply(folder):
        file = folder / "model.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file)

    return apply


def replace(name, make):
    return tensors(lambda t: t.update({name: make(t[name])}))


def remove(name):
    return tensors(lambda t: t.pop(name))


def index(weight_map, **extra):
    def apply(folder):
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        text = json.dumps({"weight_map": weight_map, **extra})
        (folder / "model.safetensors.index.json").write_text(text)

    return apply


def raw(edit):
    def apply(folder):
        file = folder / "model.safetensors"
        file.write_bytes(edit(file.read_bytes()))

    return apply


def header(edit):
    def on_bytes(data):
        length = int.from_bytes(data[:8], "little")
        values = json.loads(data[8 : 8 + length])
        edit(values)
        text = json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return raw(on_bytes)


def pickles_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")


def gguf_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")


def link_outside(folder):
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def broken_link(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nowhere")


def several_files(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"x": torch.zeros(1)}, folder / "b.safetensors")


CHECKPOINT = errors.CheckpointError
UNSUPPORTED = errors.UnsupportedQuantizationError
Q = f"{LAYER}.qweight"

BAD = {
    # files
    "no config": (lambda f: (f / "config.json").unlink(), CHECKPOINT, r"config\.json: not there"),
    "config no JSON": (config_text("{"), CHECKPOINT, r"config\.json: no JSON"),
    "config binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        CHECKPOINT,
        r"config\.json: no JSON",
    ),
    "config a list": (config_text("[1]"), CHECKPOINT, r"holds a list; it must be a JSON object"),
    "config nested": (
        config_text("[" * 200_000),
        CHECKPOINT,
        r"config\.json: no JSON .*nested too deeply",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        CHECKPOINT,
        r"no weights: neither model\.safetensors",
    ),
    "pickles": (pickles_only, CHECKPOINT, r"pytorch_model\.bin.*Convert them to safetensors"),
    "gguf": (gguf_only, CHECKPOINT, "no GGUF file, or cut short: it has 4 bytes"),
    "several": (several_files, CHECKPOINT, r"a\.safetensors, b\.safetensors"),
    "link outside": (link_outside, CHECKPOINT, "outside the folder; not followed"),
    "broken link": (broken_link, CHECKPOINT, "a link that leads nowhere"),
    # the index
    "index is a list": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text("[]"),
        ),
        CHECKPOINT,
        r"index\.json: holds a list",
    ),
    "index without map": (index({}), CHECKPOINT, "no weight_map"),
    "index up": (index({"x": "../one.safetensors"}), CHECKPOINT, "not in the folder"),
    "index absolute": (index({"x": "/etc/passwd"}), CHECKPOINT, "not in the folder"),
    "index number": (index({"x": 3}), CHECKPOINT, "no file name"),
    "index nul": (index({"x": "a\0b"}), CHECKPOINT, "string with the character .*x00"),
    "index missing shard": (
        index({"x": "two.safetensors"}),
        CHECKPOINT,
        r"two\.safetensors: not there.*incomplete",
    ),
    "index lies": (index({"x": "one.safetensors"}), CHECKPOINT, "'x' should be in one.safe"),
    # the safetensors file
    "empty": (raw(lambda d: b""), CHECKPOINT, r"model\.safetensors: not a safetensors file"),
    "truncated header": (raw(lambda d: d[:100]), CHECKPOINT, "cut short.*Fetch it again"),
    "truncated": (raw(lambda d: d[:-1]), CHECKPOINT, "cut short.*Fetch it again"),
    "trailing": (raw(lambda d: d + b"x"), CHECKPOINT, "1 bytes after the last tensor"),
    "garbage": (raw(lambda d: b"\x07" + b"\0" * 7 + b"garbage"), CHECKPOINT, "header is no JSON"),
    "huge header": (raw(lambda d: b"\xff" * 8 + d), CHECKPOINT, "not a safetensors file"),
    "header a list": (raw(lambda d: b"\x02" + b"\0" * 7 + b"[]"), CHECKPOINT, "no JSON object"),
    "header nested": (
        raw(lambda d: (100_000).to_bytes(8, "little") + b"[" * 100_000),
        CHECKPOINT,
        "header is no JSON",
    ),
    "header twice": (
        raw(lambda d: b"\x0f" + b"\0" * 7 + b'{"a":1,"a":2}  '),
        CHECKPOINT,
        "twice",
    ),
    "dtype unknown": (header(lambda h: h[Q].update(dtype="F3")), CHECKPOINT, f"{Q}'.*'F3'"),
    "shape negative": (header(lambda h: h[Q].update(shape=[-1])), CHECKPOINT, f"{Q}'.*shape"),
    "shape other": (header(lambda h: h[Q].update(shape=[8, 8])), CHECKPOINT, f"{Q}'.*bytes"),
    "offsets": (header(lambda h: h[Q].update(data_offsets=[9, 1])), CHECKPOINT, "no range"),
    "offsets beyond": (
        header(lambda h: h[Q].update(data_offsets=[10**12, 10**12 + 2048])),
        CHECKPOINT,
        "damaged",
    ),
    "overlap": (
        header(lambda h: h.update(dup=dict(h[Q]))),
        CHECKPOINT,
        "overlaps another",
    ),
    # tensors and config that contradict each other
    "wrong dtype": (
        replace(Q, lambda t: t.to(torch.int64)),
        CHECKPOINT,
        rf"{Q} is int64, needed is int32: the config says GPTQ 4 bit g32",
    ),
    "wrong shape": (
        replace(Q, lambda t: t[:-1].clone()),
        CHECKPOINT,
        rf"{Q} has shape \[7, 64\], needed is \[8, 64\]",
    ),
    "missing scales": (remove(f"{LAYER}.scales"), CHECKPOINT, r"scales \(scales\) is missing"),
    "missing norm": (remove("model.norm.weight"), CHECKPOINT, r"1 missing: model\.norm\.weight"),
    "missing layer": (
        tensors(lambda t: [t.pop(k) for k in list(t) if k.startswith(LAYER)]),
        CHECKPOINT,
        "q_proj.qweight .* is missing",
    ),
    "unexpected": (
        tensors(lambda t: t.update(extra=torch.zeros(1))),
        CHECKPOINT,
        "1 unexpected: extra",
    ),
    "float in an int layer": (
        replace("model.norm.weight", lambda t: t.to(torch.int32)),
        CHECKPOINT,
        "norm.weight is int32, the model needs a float",
    ),
    "norm shape": (
        replace("model.norm.weight", lambda t: t[:3].clone()),
        CHECKPOINT,
        r"norm.weight has shape \[3\], the model needs \[64\]",
    ),
    "lying bits": (quantization(bits=8), CHECKPOINT, r"qweight has shape .*GPTQ 8 bit"),
    "lying group": (quantization(group_size=16), CHECKPOINT, r"qzeros has shape .*g16"),
    "lying lm_head": (quantization(lm_head=True), None, None),
    "g_idx out of range": (
        replace(f"{LAYER}.g_idx", lambda t: t + 1),
        CHECKPOINT,
        r"q_proj: g_idx goes from 1 to 2; the layer has the groups 0 to 1",
    ),
    "lying sym": (
        replace(f"{LAYER}.qzeros", lambda t: t * 0 + 0x12345678),
        CHECKPOINT,
        r"q_proj: the config says symmetric.*from 2 to 9",
    ),
    "desc_act without g_idx": (
        lambda f: (
            quantization(desc_act=True)(f),
            remove(f"{LAYER}.g_idx")(f),
        ),
        CHECKPOINT,
        "g_idx .* is missing",
    ),
    "silent about quantization": (
        without("quantization_config"),
        CHECKPOINT,
        "seems quantized.*quantization config",
    ),
    "other prefix": (
        tensors(lambda t: [t.update({f"vision.{k}": t.pop(k)}) for k in list(t)]),
        CHECKPOINT,
        "q_proj is missing; the checkpoint says 'vision.*saved from another class",
    ),
    "nothing quantized": (
        setting(
            quantization_config=w.ct_config(ignore=["re:.*"]),
        ),
        CHECKPOINT,
        "seems quantized",
    ),
    # the quantization config
    "config of no object": (setting(quantization_config=[1]), CHECKPOINT, "must be a JSON object"),
    "unknown method": (
        quantization(quant_method="gptqq"),
        errors.UnknownQuantizationError,
        "no quantization method is called 'gptqq'; nearest: gptq",
    ),
    "no method": (
        setting(quantization_config={"x": 1}),
        CHECKPOINT,
        r"names no quant_method, and its fields \(x\)",
    ),
    "method a number": (quantization(quant_method=3), CHECKPOINT, "quant_method is 3"),
    "method for later": (
        quantization(quant_method="quark"),
        UNSUPPORTED,
        "'quark' is not supported; supported: auto-round, awq",
    ),
    "auto-round of another layout": (
        quantization(quant_method="auto-round", packing_format="auto_round:llm_compressor"),
        UNSUPPORTED,
        "packing_format 'auto_round:llm_compressor'.*auto_round:auto_gptq",
    ),
    # the model
    "no architecture": (without("architectures"), CHECKPOINT, "architectures is None"),
    "unknown architecture": (
        setting(architectures=["NoSuchModel"]),
        CHECKPOINT,
        "no model class 'NoSuchModel'; a later version",
    ),
    "architecture no model": (setting(architectures=["pipeline"]), CHECKPOINT, "no model class"),
    "own code": (
        setting(architectures=["NoSuchModel"], auto_map={"AutoModel": "x.Y"}),
        CHECKPOINT,
        "auto_map.*never runs",
    ),
    "config of nonsense": (setting(num_hidden_layers="two"), CHECKPOINT, "cannot build"),
    "dtype": (setting(dtype="float8"), CHECKPOINT, "dtype is 'float8'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint(gptq_folder, name, monkeypatch):
    folder, _ = gptq_folder
    damage, error, text = BAD[name]
    damage(folder)
    if error is None:  # GPTQ's lm_head is plain in the file, and that is what counts
        load_model(folder, device="cpu")
        return
    read = []
    monkeypatch.setattr(
        load_module,
        "read_tensor",
        lambda info, real=load_module.read_tensor: read.append(info) or real(info),
    )
    with pytest.raises(error, match=text) as caught:
        load_model(folder, device="cpu")
    assert type(caught.value) is error
    needs_values = name in ("g_idx out of range", "lying sym")
    assert bool(read) == needs_values, "checked before any weight is read"


INSPECTABLE = sorted(
    name
    for name in BAD
    if not name.startswith(("missing norm", "missing layer", "unexpected", "float in", "norm"))
    and name
    not in (
        "lying lm_head",
        "nothing quantized",
        "g_idx out of range",
        "lying sym",
        "silent about quantization",
        "other prefix",
        "no architecture",
        "unknown architecture",
        "architecture no model",
        "own code",
        "config of nonsense",
        "wrong shape",
        "lying bits",
    )
)


@pytest.mark.parametrize("name", INSPECTABLE)
def test_inspection_finds_it_too(gptq_folder, name):
    folder, _ = gptq_folder
    damage, error, text = BAD[name]
    damage(folder)
    with pytest.raises(error, match=text):
        inspect_checkpoint(folder)


def test_no_folder(tmp_path):
    with pytest.raises(CHECKPOINT, match="not there; qcore reads folders"):
        load_model(tmp_path / "none")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CHECKPOINT, match="give the folder"):
        load_model(file)


def test_dtype_that_is_none(gptq_folder):
    with pytest.raises(CHECKPOINT, match="dtype 'int4x' is not known"):
        load_model(gptq_folder[0], device="cpu", dtype="int4x")
    with pytest.raises(UNSUPPORTED, match="activations in int8"):
        load_model(gptq_folder[0], device="cpu", dtype=torch.int8)


def test_links_of_the_hubs_cache_are_followed(gptq_folder, tmp_path):
    folder, _ = gptq_folder
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(folder.iterdir()):
        os.replace(file, blobs / f"blob{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{i}")
    load_model(snapshot, device="cpu")


def test_kernel_that_cannot_pack_leaves_an_error_with_the_layers_name(gptq_folder, monkeypatch):
    from qcore.reference.kernels import ReferenceMPLinearKernel

    monkeypatch.setattr(
        ReferenceMPLinearKernel,
        "can_implement",
        classmethod(lambda cls, config: (config.out_features != 96, "96 outputs")),
    )
    from qcore.registry import reset_registry

    reset_registry()
    read = []
    monkeypatch.setattr(load_module, "read_tensor", read.append)
    with pytest.raises(errors.NoKernelError, match=r"(?s)layers\.0\.mlp\.gate_proj.*96 outputs"):
        load_model(gptq_folder[0], device="cpu")
    assert not read
    monkeypatch.undo()
    reset_registry()


def test_experts_of_a_mixture_are_refused_clearly(tmp_path):
    model = w.tiny_model(
        "Qwen3MoeForCausalLM", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32
    )
    state = {k: v for k, v in model.state_dict().items() if ".experts." not in k}
    state["model.layers.0.mlp.experts.0.gate_proj.weight"] = torch.zeros(32, 64)
    with pytest.raises(CHECKPOINT, match="experts"):
        load_model(w.write_folder(tmp_path, model, state), device="cpu")


def test_saved_from_the_inner_class(tmp_path):
    model = w.tiny_model()
    state = {
        f"language.{k}" if k.startswith("model.") else k: v for k, v in model.state_dict().items()
    }
    with pytest.raises(CHECKPOINT, match="saved from another class"):
        load_model(w.write_folder(tmp_path, model, state), device="cpu")


def test_config_of_a_method_that_no_layer_has(tmp_path):
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, model.state_dict(), w.gptq_config())
    with pytest.raises(CHECKPOINT, match=r"says GPTQ 4 bit g32.*no layer is stored so"):
        load_model(folder, device="cpu")
