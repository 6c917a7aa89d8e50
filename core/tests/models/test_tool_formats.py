"""bitsandbytes, HQQ, torchao and quanto checkpoints agree with a float model of what they say."""

from __future__ import annotations

import json

import checkpoint_writers as w
import float_writers as f
import pytest
import tool_writers as t
import torch
from qcore import errors
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedLinear
from safetensors.torch import load_file, save_file

CLOSE = 1e-5
LAYERS = 14


def with_(layer, **how):
    return lambda weight: layer(weight, **how)


ROW = t.ao("PerRow", dim=-1)
TENSOR = t.ao("PerTensor")
GROUP = t.ao("PerGroup", group_size=32)
BLOCKS = [t.ao("PerBlock", block_size=[1, 128]), t.ao("PerBlock", block_size=[128, 128])]
INT4 = t.ao_word("torch.dtype", "int4")
ASYMMETRIC = t.ao_word("MappingType", "ASYMMETRIC")
INT3 = t.ao_word("torch.dtype", "int3")
DYNAMIC8 = "Float8DynamicActivationFloat8WeightConfig"
DOUBLE = {"bnb_4bit_use_double_quant": True}

FORMATS = {
    # name: (layer, config, kernel type, what happens to inputs)
    "bnb int8": (t.bnb_int8, t.bnb_config(**t.BNB_INT8), "mp", None),
    "bnb nf4": (t.bnb_4bit, t.bnb_config(), "codebook", None),
    "bnb nf4 double": (with_(t.bnb_4bit, double=True), t.bnb_config(**DOUBLE), "codebook", None),
    "bnb nf4, small outer blocks": (
        with_(t.bnb_4bit, double=True, outer_size=7),
        t.bnb_config(**DOUBLE),
        "codebook",
        None,
    ),
    "bnb nf4 of 128": (with_(t.bnb_4bit, size=128), t.bnb_config(), "codebook", None),
    "bnb fp4": (
        with_(t.bnb_4bit, kind="fp4", double=True),
        t.bnb_config(bnb_4bit_quant_type="fp4", **DOUBLE),
        "codebook",
        None,
    ),
    **{
        f"hqq {bits}": (with_(t.hqq_layer, bits=bits), t.hqq_config(bits), "codebook", None)
        for bits in (8, 6, 5, 4, 3, 2, 1)
    },
    "hqq of 64": (with_(t.hqq_layer, size=64), t.hqq_config(4, 64), "codebook", None),
    "hqq half": (with_(t.hqq_layer, dtype=torch.float16), t.hqq_config(), "codebook", None),
    "torchao int8": (
        t.ao_int,
        t.ao_config("Int8WeightOnlyConfig", group_size=None, granularity=ROW),
        "mp",
        None,
    ),
    "torchao int8 groups": (
        with_(t.ao_int, size=32),
        t.ao_config("Int8WeightOnlyConfig", granularity=GROUP),
        "mp",
        None,
    ),
    "torchao int8 dynamic": (
        t.ao_int,
        t.ao_config(
            "Int8DynamicActivationInt8WeightConfig",
            act_mapping_type=t.ao_word("MappingType", "SYMMETRIC"),
            weight_only_decode=False,
            granularity=[ROW, ROW],
        ),
        "int8",
        t.round_int8,
    ),
    "torchao float8": (
        with_(t.ao_float8, channel=True),
        t.ao_config("Float8WeightOnlyConfig", granularity=ROW),
        "fp8",
        None,
    ),
    "torchao float8 tensor": (
        t.ao_float8,
        t.ao_config("Float8WeightOnlyConfig", granularity=TENSOR),
        "fp8",
        None,
    ),
    "torchao float8 dynamic": (
        with_(t.ao_float8, channel=True),
        t.ao_config(DYNAMIC8, granularity=[ROW, ROW]),
        "fp8",
        f.round_fp8(),
    ),
    "torchao float8 dynamic tensor": (
        t.ao_float8,
        t.ao_config(DYNAMIC8, granularity=[TENSOR, TENSOR]),
        "fp8",
        f.round_fp8(0),
    ),
    "torchao float8 blocks": (
        with_(t.ao_float8, block=(128, 128)),
        t.ao_config(DYNAMIC8, granularity=BLOCKS),
        "fp8_block",
        f.round_fp8(128),
    ),
    "torchao int4": (
        t.ao_int4,
        t.ao_config(
            "Int4WeightOnlyConfig",
            group_size=32,
            int4_packing_format=t.ao_word("Int4PackingFormat", "PLAIN"),
        ),
        "codebook",
        None,
    ),
    "torchao intx": (
        with_(t.ao_int, bits=4, size=32),
        t.ao_config("IntxWeightOnlyConfig", weight_dtype=INT4, granularity=GROUP),
        "mp",
        None,
    ),
    "torchao intx asymmetric": (
        with_(t.ao_int, bits=3, size=32, zero_points=True),
        t.ao_config(
            "IntxWeightOnlyConfig", weight_dtype=INT3, granularity=GROUP, mapping_type=ASYMMETRIC
        ),
        "mp",
        None,
    ),
    "quanto qint8": (t.quanto_bytes, "qint8", "mp", None),
    "quanto qfloat8": (with_(t.quanto_bytes, float8=True), "qfloat8_e4m3fn", "fp8", None),
    "quanto qint4": (t.quanto_bits, "qint4", "codebook", None),
    "quanto qint2": (with_(t.quanto_bits, bits=2), "qint2", "codebook", None),
    "quanto qint4 integer shift": (
        with_(t.quanto_bits, integer=True),
        "qint4",
        "codebook",
        None,
    ),
}


def write(folder, model, tensors, config):
    if not isinstance(config, str):
        return w.write_folder(folder, model, tensors, config)
    w.write_folder(folder, model, tensors)
    names = [name for name, _ in w.linears(model)]
    (folder / "quanto_qmap.json").write_text(json.dumps(t.quanto_map(names, config)))
    return folder


@pytest.fixture
def saved(tmp_path):
    def save(name, **model_changes):
        to_layer, config, _, rounding = FORMATS[name]
        model = w.tiny_model(**model_changes)
        tensors = f.quantize_model(model, to_layer, rounding)
        return write(tmp_path / "model", model, tensors, config), model

    return save


@pytest.mark.parametrize("name", FORMATS)
def test_format(saved, name, format_result):
    kernel_type, rounding = FORMATS[name][2:]
    folder, model = saved(name)
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
def test_inspection_knows_the_layers(saved, name):
    folder, model = saved(name)
    report = inspect_checkpoint(folder)
    if name.startswith("quanto qint") and name != "quanto qint8":
        assert report.layers == (), "nothing but the model's class says the shapes"
        return
    shapes = {n: (m.in_features, m.out_features) for n, m in w.linears(model)}
    assert {r.layer: (r.K, r.N) for r in report.layers} == shapes
    assert {r.decision.config.kernel_type for r in report.layers} == {FORMATS[name][2]}


@pytest.mark.parametrize("name", ["bnb nf4", "bnb nf4 double", "hqq 4", "hqq 3"])
def test_blocks_that_end_within_a_row(saved, name):
    """K = 80 is no multiple of 64, nor of 32."""
    if name.startswith("hqq"):
        folder, model = saved(name, intermediate_size=80)
    else:
        folder, model = saved(name, intermediate_size=81 if "double" in name else 80)
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_16_bits(saved, dtype):
    folder, model = saved("bnb nf4 double")
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


def test_llm_int8_says_that_activations_are_not_rounded(saved):
    folder, _ = saved("bnb int8")
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


OWN_LIES = {
    "no bits": ("nbits", None, r"neither .*nbits nor a quantization_config"),
    "bits that are none": ("nbits", torch.tensor(7), "nbits is 7"),
    "several numbers": ("group_size", torch.tensor([1, 2]), "must be one number"),
    "across outputs": ("axis", torch.tensor(0), "axis is 0"),
    "disguised": ("view_as_float", torch.tensor(1), "view_as_float"),
    "quantized scales": ("quant_scale", torch.tensor(1), "scale_quant_params is 1"),
}


@pytest.mark.parametrize("name", OWN_LIES)
def test_hqqs_own_safetensors_that_lie(tmp_path, name):
    suffix, value, text = OWN_LIES[name]
    model = w.tiny_model()
    tensors = f.quantize_model(model, t.hqq_layer)
    key = f"model.layers.0.mlp.up_proj.{suffix}"
    del tensors[key]
    if value is not None:
        tensors[key] = value
    folder = w.write_folder(tmp_path, model, tensors)
    for read in (load_model, inspect_checkpoint):
        with pytest.raises(errors.QcoreError, match=text):
            read(folder)


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


# -- what is refused -----------------------------------------------------------------------------

DISGUISED = "codes disguised as"

REFUSED = {
    "bnb of neither": (t.bnb_config(load_in_4bit=False), "both false"),
    "bnb of both": (t.bnb_config(load_in_8bit=True), "both true"),
    "bnb of another type": (t.bnb_config(bnb_4bit_quant_type="nf3"), "nf4, fp4"),
    "bnb in bfloat16": (t.bnb_config(bnb_4bit_quant_storage="bfloat16"), DISGUISED),
    "bnb with float weights": (
        t.bnb_config(**t.BNB_INT8, llm_int8_has_fp16_weight=True),
        "not stored as int8",
    ),
    "hqq across outputs": (t.hqq_config(axis=0), "axis is 0: groups go across outputs"),
    "hqq as floats": (t.hqq_config(view_as_float=True), DISGUISED),
    "hqq of 1.58 bits": (t.hqq_config(1.58), "nbits is 1.58"),
    "hqq with quantized scales": (
        t.hqq_config() | {"quant_config": {**t.hqq_params(), "scale_quant_params": {"nbits": 8}}},
        "quantized scales",
    ),
    "hqq without a config": ({"quant_method": "hqq"}, "must be a JSON object"),
    "hqq with an empty config": ({"quant_method": "hqq", "quant_config": {}}, "is empty"),
    "torchao by a string": (
        {"quant_method": "torchao", "quant_type": "int8_weight_only"},
        "with weights as pickles",
    ),
    "torchao of version 1": (t.ao_config("Int4WeightOnlyConfig", version=1), "version 1"),
    "torchao embeddings": (
        t.ao_config("Int8WeightOnlyConfig") | {"include_input_output_embeddings": True},
        "embeddings are not quantized",
    ),
    "torchao for one device": (
        t.ao_config(
            "Int4WeightOnlyConfig",
            int4_packing_format=t.ao_word("Int4PackingFormat", "TILE_PACKED_TO_4D"),
        ),
        "tile_packed_to_4d.*layout of one device",
    ),
    "torchao of another kind": (
        t.ao_config("NVFP4WeightOnlyConfig"),
        "NVFP4WeightOnlyConfig: not supported; supported: Int8WeightOnlyConfig",
    ),
    "torchao asymmetric inputs": (
        t.ao_config(
            "Int8DynamicActivationInt8WeightConfig",
            act_mapping_type=t.ao_word("MappingType", "ASYMMETRIC"),
        ),
        "act_mapping_type",
    ),
    "torchao along columns": (
        t.ao_config("Int8WeightOnlyConfig", granularity=t.ao("PerRow", dim=0)),
        "along another dimension",
    ),
    "torchao e5m2": (
        t.ao_config("Float8WeightOnlyConfig", weight_dtype=t.ao_word("torch.dtype", "float8_e5m2")),
        "supported: float8_e4m3fn",
    ),
    "torchao of no type": ({"quant_method": "torchao", "quant_type": {}}, "must be a JSON object"),
    "quanto by transformers": (
        {"quant_method": "quanto", "weights": "int8", "activations": None},
        "transformers quantizes so while it loads, and does not save it",
    ),
    "quanto with activations": (
        {"a": {"weights": "qint8", "activations": "qint8"}},
        "activations is 'qint8'",
    ),
    "quanto e5m2": (
        {"a": {"weights": "qfloat8_e5m2", "activations": "none"}},
        "weights is 'qfloat8_e5m2'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(tmp_path, name):
    config, words = REFUSED[name]
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, dict(model.state_dict()), config)
    with pytest.raises(errors.CheckpointError, match=words):
        load_model(folder, device="cpu")


# -- checkpoints that lie ----------------------------------------------------------------------

LAYER = "model.layers.0.mlp.up_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"


def state(**changes):
    def change(tensor):
        values = json.loads(bytes(tensor.tolist()))
        return torch.tensor(list(json.dumps({**values, **changes}).encode()), dtype=torch.uint8)

    return change


LIES = {
    # name: (format, tensor, how it is changed, what the message says)
    "int8 of an early layout": ("bnb int8", "weight_format", lambda x: x + 1, "weight_format is 1"),
    "int8 without magnitudes": ("bnb int8", "SCB", None, r"SCB.* is missing"),
    "nf4 without state": ("bnb nf4", STATE, None, r"quant_state.* is missing"),
    "nf4 of other shape": ("bnb nf4", STATE, state(shape=[96, 32]), r"quant_state says \[96, 32\]"),
    "nf4 of no shape": ("bnb nf4", STATE, state(shape=None), "quant_state: shape is None"),
    "nf4 of other blocks": ("bnb nf4", STATE, state(blocksize=32), "quant_state: blocksize is 32"),
    "nf4 state that is no JSON": (
        "bnb nf4",
        STATE,
        lambda x: x[1:],
        "quant_state is no JSON",
    ),
    "nf4 cut short": ("bnb nf4", "weight", lambda x: x[:-1], r"weight has shape \[3071, 1\]"),
    "nf4 with a codebook of 8": ("bnb nf4", "weight.quant_map", lambda x: x[:8], "quant_map"),
    "double without offset": (
        "bnb nf4 double",
        STATE,
        state(nested_offset=None),
        "quant_state: nested_offset is None",
    ),
    "double with blocks of 0": (
        "bnb nf4 double",
        STATE,
        state(nested_blocksize=0),
        "quant_state: nested_blocksize is 0",
    ),
    "double with too few magnitudes": (
        "bnb nf4 double",
        "weight.nested_absmax",
        lambda x: x[:0],
        "nested_absmax has 0 values",
    ),
    "hqq of other shape": ("hqq 4", "shape", lambda x: x + 1, r"shape says \[97, 65\]"),
    "hqq across outputs": ("hqq 4", "axis", lambda x: x * 0, "axis says 0; the config, 1"),
    "hqq of other bits": ("hqq 4", "nbits", lambda x: x * 2, "nbits says 8; the config, 4"),
    "hqq with codes beyond its bits": ("hqq 5", "W_q", lambda x: x | 32, "W_q has codes up to"),
    "hqq without zeros": ("hqq 4", "zero", None, r"zero.* is missing"),
    "torchao with zero points": (
        "torchao int8",
        "_weight_zero_point",
        lambda x: x + 1,
        "zero_point|all zero points are 128",
    ),
    "torchao with scales by row": (
        "torchao int4",
        "_weight_scale",
        lambda x: x.t(),
        r"_weight_scale has shape \[96, 2\], needed is \[2, 96\]",
    ),
    "torchao codes beyond 4 bits": (
        "torchao intx",
        "_weight_qdata",
        lambda x: x * 16,
        "codes of 4 bits",
    ),
    "quanto without shift": ("quanto qint4", "weight._shift", None, r"_shift.* is missing"),
    "quanto codes as signed": (
        "quanto qint4",
        "weight._data._data",
        lambda x: x.view(torch.int8),
        "is int8, needed is uint8",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lie(saved, name):
    fmt, suffix, change, words = LIES[name]
    folder, _ = saved(fmt)
    tensors = load_file(folder / "model.safetensors")
    old = tensors.pop(f"{LAYER}.{suffix}")
    if change is not None:
        tensors[f"{LAYER}.{suffix}"] = change(old).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=words) as caught:
        load_model(folder, device="cpu")
    assert LAYER in str(caught.value)


def test_inspection_of_a_state_that_is_no_json(saved):
    folder, _ = saved("bnb nf4")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{LAYER}.{STATE}"] = tensors[f"{LAYER}.{STATE}"][1:].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=f"{LAYER}: quant_state is no JSON"):
        inspect_checkpoint(folder)
