"""Layers as bitsandbytes, HQQ, torchao and quanto save them, and the configs that say so."""

from __future__ import annotations

import json

import checkpoint_writers as w
import float_writers as f
import tool_writers as t
import torch


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


def save(folder, name, **model_changes):
    """A checkpoint of FORMATS; (its folder, the float model that holds what it says)."""
    to_layer, config, _, rounding = FORMATS[name]
    model = w.tiny_model(**model_changes)
    tensors = f.quantize_model(model, to_layer, rounding)
    return write(folder, model, tensors, config), model
