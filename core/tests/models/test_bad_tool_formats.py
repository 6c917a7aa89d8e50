"""bitsandbytes, HQQ, torchao and quanto checkpoints that are refused, and those that lie."""

from __future__ import annotations

import json

import checkpoint_writers as w
import float_writers as f
import pytest
import tool_writers as t
import torch
from qcore import errors
from qcore.models import inspect_checkpoint, load_model
from safetensors.torch import load_file, save_file
from tool_cases import save

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
def test_lie(tmp_path, name):
    fmt, suffix, change, words = LIES[name]
    folder, _ = save(tmp_path, fmt)
    tensors = load_file(folder / "model.safetensors")
    old = tensors.pop(f"{LAYER}.{suffix}")
    if change is not None:
        tensors[f"{LAYER}.{suffix}"] = change(old).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=words) as caught:
        load_model(folder, device="cpu")
    assert LAYER in str(caught.value)


def test_inspection_of_a_state_that_is_no_json(tmp_path):
    folder, _ = save(tmp_path, "bnb nf4")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{LAYER}.{STATE}"] = tensors[f"{LAYER}.{STATE}"][1:].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=f"{LAYER}: quant_state is no JSON"):
        inspect_checkpoint(folder)


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
