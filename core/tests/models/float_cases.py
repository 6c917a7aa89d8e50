"""Layers of FP8, NVFP4, MXFP4, MXFP8 and W4A8, their configs, and how inputs are rounded."""

from __future__ import annotations

import checkpoint_writers as w
import float_writers as f
import torch

LAYER = "model.layers.0.mlp.up_proj"
"""One that tests change."""
STATIC = 0.03


def fp8(**how):
    return lambda weight: f.fp8_layer(weight, **how)


def fnuz(**how):
    return lambda weight: f.fnuz_layer(weight, **how)


def nvfp4(**how):
    return lambda weight: f.nvfp4_layer(weight, **how)


def w4a8(weight):
    rounded = w.quantize(weight)
    return w.int8_tensors(rounded), rounded.weight()


def w4a8_packed(weight):
    rounded = w.quantize(weight, sym=False)
    return w.packed_tensors(rounded, False), rounded.weight()


def int4_channel(weight):
    rounded = w.quantize(weight, group=-1)
    return w.int8_tensors(rounded), rounded.weight()


def modelopt(algo, **changes):
    base = {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"]}
    return {**base, **changes}


def modelopt_mxfp4(weight):
    tensors, value = f.mxfp4_layer(weight)
    return {"weight": tensors["weight_packed"], "weight_scale": tensors["weight_scale"]}, value


def auto_round(data_type, bits, group_size, **changes):
    base = {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"}
    base |= {"data_type": data_type, "bits": bits, "group_size": group_size, "sym": True}
    return {**base, "block_name_to_quantize": "model.layers", **changes}


def fp8_config(**changes):
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **changes}


MX8 = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
MX4 = {**MX8, "num_bits": 4}
NV4 = {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
INT8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
BLOCK = {"strategy": "block", "block_structure": [40, 48]}
Q = "float-quantized"

FORMATS = {
    # compressed-tensors: name: (layer, config, what happens to inputs)
    "float tensor": (fp8(), f.ct("naive-quantized", {"strategy": "tensor"}), None),
    "float channel": (fp8(channel=True), f.ct(Q, {"strategy": "channel"}), None),
    "float group": (fp8(block=(1, 32)), f.ct(Q, {"strategy": "group", "group_size": 32}), None),
    "float block": (fp8(block=(40, 48), dtype=torch.bfloat16), f.ct(Q, BLOCK), None),
    "float channel, token": (
        fp8(channel=True, dtype=torch.bfloat16),
        f.ct(Q, {"strategy": "channel"}, f.ct_inputs("token")),
        f.round_fp8(),
    ),
    "float tensor, dynamic tensor": (
        fp8(),
        f.ct(Q, {"strategy": "tensor"}, f.ct_inputs("tensor")),
        f.round_fp8(0),
    ),
    "float tensor, static": (
        fp8(input_scale=[STATIC]),
        f.ct(Q, {"strategy": "tensor"}, f.ct_inputs("tensor", dynamic=False)),
        f.round_fp8(scale=STATIC),
    ),
    "float block, group": (
        fp8(block=(40, 48)),
        f.ct(Q, BLOCK, f.ct_inputs("group", group_size=48)),
        f.round_fp8(48),
    ),
    "nvfp4": (nvfp4(), f.ct("nvfp4-pack-quantized", NV4), None),
    "nvfp4, nvfp4": (
        nvfp4(input_scale=0.002),
        f.ct("nvfp4-pack-quantized", NV4, f.ct_inputs(**{**NV4, "dynamic": "local"})),
        f.round_nvfp4(0.002),
    ),
    "mxfp4": (f.mxfp4_layer, f.ct("mxfp4-pack-quantized", MX4), None),
    "mxfp4, mxfp4": (
        f.mxfp4_layer,
        f.ct("mxfp4-pack-quantized", MX4, f.ct_inputs(**MX4)),
        f.round_mxfp4,
    ),
    "mxfp4, mxfp8": (
        f.mxfp4_layer,
        f.ct("mxfp4-pack-quantized", MX4, f.ct_inputs(**MX8)),
        f.round_mxfp8,
    ),
    "mxfp8": (f.mxfp8_layer, f.ct("mxfp8-quantized", MX8), None),
    "mxfp8, mxfp8": (
        f.mxfp8_layer,
        f.ct("mxfp8-quantized", MX8, f.ct_inputs(**MX8)),
        f.round_mxfp8,
    ),
    "mxfp8 in float-quantized": (f.mxfp8_layer, f.ct(Q, MX8), None),
    "int4 group, int8": (w4a8, w.ct_config("int-quantized", inputs=INT8), f.round_int8),
    "int4 group, fp8": (
        w4a8,
        w.ct_config("int-quantized", inputs=f.ct_inputs("token")),
        f.round_fp8(),
    ),
    "int4 packed, fp8": (
        w4a8_packed,
        w.ct_config(weights={"symmetric": False}, inputs=f.ct_inputs("token")),
        f.round_fp8(),
    ),
    "int4 channel, int8": (
        int4_channel,
        w.ct_config("int-quantized", {"strategy": "channel", "group_size": None}, INT8),
        f.round_int8,
    ),
    # fp8
    "fp8 tensor": (fp8(), fp8_config(), f.round_fp8()),
    "fp8 channel": (fp8(channel=True), fp8_config(), f.round_fp8()),
    "fp8 static": (
        fp8(input_scale=STATIC),
        fp8_config(activation_scheme="static", ignored_layers=["lm_head"]),
        f.round_fp8(scale=STATIC),
    ),
    "fp8 static, other names": (
        fp8(scale_name="weight_scale_inv", activation_scale=STATIC),
        fp8_config(activation_scheme="static", weight_block_size=None),
        f.round_fp8(scale=STATIC),
    ),
    "fp8 block": (
        fp8(block=(40, 48), scale_name="weight_scale_inv"),
        fp8_config(weight_block_size=[40, 48], modules_to_not_convert=["lm_head"]),
        f.round_fp8(48),
    ),
    "fp8 block of 128": (
        fp8(block=(128, 128), scale_name="weight_scale_inv"),
        fp8_config(weight_block_size=[128, 128], modules_to_not_convert=["lm_head"]),
        f.round_fp8(128),
    ),
    "fnuz tensor, weight-only": (
        fnuz(),
        f.ct("naive-quantized", {"strategy": "tensor"}),
        None,
    ),
    "fnuz channel": (fnuz(channel=True), fp8_config(fmt="e4m3fnuz"), f.round_fnuz()),
    "fnuz channel, said by the file": (
        fnuz(channel=True),
        f.ct(Q, {"strategy": "channel"}, f.ct_inputs("token")),
        f.round_fnuz(),
    ),
    "fnuz static": (
        fnuz(input_scale=STATIC),
        fp8_config(activation_scheme="static"),
        f.round_fnuz(STATIC),
    ),
    "fnuz block, weight-only": (
        fnuz(block=(40, 48)),
        f.ct(Q, BLOCK),
        None,
    ),
    "fbgemm_fp8": (
        fp8(channel=True),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1.5},
        f.round_fp8(bound=1.5),
    ),
    # auto-round
    "auto-round nvfp4": (
        nvfp4(input_scale=0.002),
        auto_round("nv_fp", 4, 16, act_bits=4, act_data_type="nv_fp4_with_static_gs"),
        f.round_nvfp4(0.002),
    ),
    "auto-round nvfp4 weight-only": (nvfp4(), auto_round("nv_fp", 4, 16), None),
    "auto-round mxfp4": (
        f.mxfp4_layer,
        auto_round("mx_fp", 4, 32, act_bits=4, act_data_type="mx_fp", act_group_size=32),
        f.round_mxfp4,
    ),
    "auto-round mxfp8": (
        f.mxfp8_layer,
        auto_round("mx_fp", 8, 32, act_bits=8, act_group_size=32),
        f.round_mxfp8,
    ),
    "auto-round fp8 static": (
        fp8(channel=True, input_scale=STATIC),
        auto_round("fp", 8, -1, act_bits=8, act_dynamic=False, act_group_size=0),
        f.round_fp8(scale=STATIC),
    ),
    "auto-round fp8 token": (
        fp8(channel=True),
        auto_round("fp", 8, -1, act_bits=8, act_dynamic=True, act_group_size=-1),
        f.round_fp8(),
    ),
    "auto-round fp8 block": (
        fp8(block=(40, 48), scale_name="weight_scale_inv"),
        auto_round("fp", 8, [40, 48], act_bits=8, act_dynamic=True, act_group_size=48),
        f.round_fp8(48),
    ),
    "auto-round fp8 tensor, weight-only": (fp8(), auto_round("fp", 8, 0), None),
    # ModelOpt
    "modelopt fp8": (fp8(input_scale=STATIC), modelopt("FP8"), f.round_fp8(scale=STATIC)),
    "modelopt fp8 channel": (
        fp8(channel=True),
        modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        f.round_fp8(),
    ),
    "modelopt fp8 block": (fp8(block=(128, 128)), modelopt("fp8_pb_wo"), None),
    "modelopt nvfp4": (
        nvfp4(modelopt=True, input_scale=0.002),
        modelopt("NVFP4", group_size=16),
        f.round_nvfp4(0.002),
    ),
    "modelopt nvfp4 weight-only": (nvfp4(modelopt=True), modelopt("W4A16_NVFP4"), None),
    "modelopt mxfp4": (modelopt_mxfp4, modelopt("mxfp4"), f.round_mxfp4),
    "modelopt mxfp8": (f.mxfp8_layer, modelopt("MXFP8"), f.round_mxfp8),
}
