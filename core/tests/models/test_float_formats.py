"""FP8, NVFP4, MXFP4, MXFP8 and W4A8 checkpoints agree with a float model that holds what they say.

The float model has the dequantized weights, and hooks that round each layer's input. Where inputs
are rounded, a value at the edge between two codes may fall to either side in the two models, and
all that follows with it; so each layer is compared on its own input, to float32 rounding, and the
logits as nearly as that lets them agree.
"""

from __future__ import annotations

import json

import checkpoint_writers as w
import float_writers as f
import pytest
import torch
from qcore import errors
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedLinear
from safetensors.torch import load_file, save_file

CLOSE = 1e-5
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


@pytest.mark.parametrize("name", FORMATS)
def test_format(tmp_path, name, format_result):
    to_layer, config, rounding = FORMATS[name]
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, f.quantize_model(model, to_layer, rounding), config)
    loaded = load_model(folder, device="cpu")
    layers = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(layers) == 14
    errors = {}
    for layer, module in layers.items():
        twin = model.get_submodule(layer)
        x = torch.randn(2, 5, module.in_features) * torch.tensor([[[0.3]], [[3.0]]])
        errors[layer] = w.relative_error(module(x), twin(x))
        assert errors[layer] < CLOSE, layer
    error = w.relative_error(w.logits(loaded), w.logits(model))
    bound = CLOSE if rounding is None else 0.02
    assert error < bound
    report = inspect_checkpoint(folder)
    assert [(row.layer, row.K, row.N) for row in report.layers] == [
        (n, m.in_features, m.out_features) for n, m in sorted(layers.items())
    ]
    worst = max(errors.values())
    format_result(folder, loaded, error, bound, layer_error=worst, layer_bound=CLOSE)


# -- files and notes ---------------------------------------------------------------------------


def test_modelopts_own_file_and_kv_cache(tmp_path):
    """hf_quant_config.json; patterns of layers left out; scales of a KV cache."""
    model = w.tiny_model()
    whole = w.tiny_model()
    tensors = f.quantize_model(model, nvfp4(modelopt=True, input_scale=0.002))
    for name, module in w.linears(model):
        if "layers.0.self_attn" in name:
            for suffix in ("weight_scale", "weight_scale_2", "input_scale"):
                del tensors[f"{name}.{suffix}"]
            module.weight = whole.get_submodule(name).weight
            tensors[f"{name}.weight"] = module.weight.clone()
        else:
            module.register_forward_pre_hook(lambda _, x: (f.round_nvfp4(0.002)(x[0]),))
    for one in "kv":
        tensors[f"model.layers.1.self_attn.{one}_proj.{one}_scale"] = torch.tensor(0.5)
    folder = w.write_folder(tmp_path, model, tensors)
    quantization = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.0.self_attn*"],
    }
    file = {"producer": {"name": "modelopt", "version": "0.47"}, "quantization": quantization}
    (folder / "hf_quant_config.json").write_text(json.dumps(file))
    loaded = load_model(folder, device="cpu")
    assert len([m for m in loaded.modules() if isinstance(m, QuantizedLinear)]) == 10
    assert w.relative_error(w.logits(loaded), w.logits(model)) < 0.02
    for shown in (explain(loaded).render(), inspect_checkpoint(folder).render()):
        assert "note: the config asks for a quantized KV cache (FP8)" in shown
        assert "note: 2 scales, model.layers.1.self_attn.k_proj.k_scale among them" in shown
    assert "no scale of the KV cache for k of layer 0, v of layer 0;" in explain(loaded).notes[2]
    assert len(inspect_checkpoint(folder).to_dict()["notes"]) == 2


def test_modelopt_mixed_precision(tmp_path):
    """A format for each named layer."""
    model = w.tiny_model()
    layers = {}

    def to_layer(weight):
        name = names.pop(0)
        kind = "FP8" if "self_attn" in name else "W4A16_NVFP4"
        layers[name] = {"quant_algo": kind, "group_size": 16}
        return (fp8(input_scale=STATIC) if kind == "FP8" else nvfp4(modelopt=True))(weight)

    names = [name for name, _ in w.linears(model)]
    tensors = f.quantize_model(model, to_layer)
    for name, module in w.linears(model):
        if "self_attn" in name:
            module.register_forward_pre_hook(lambda _, x: (f.round_fp8(scale=STATIC)(x[0]),))
    config = modelopt("MIXED_PRECISION", quantized_layers=layers)
    folder = w.write_folder(tmp_path, model, tensors, {**config, "quant_method": "modelopt_mixed"})
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < 0.02
    kinds = {row.decision.config.kernel_type for row in explain(loaded).rows}
    assert kinds == {"fp8", "nvfp4"}


def test_kv_cache_of_compressed_tensors(tmp_path):
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    config = f.ct(Q, {"strategy": "channel"}, kv_cache_scheme=scheme)
    model = w.tiny_model()
    tensors = f.quantize_model(model, fp8(channel=True))
    for layer in range(2):
        for one in "kv":
            tensors[f"model.layers.{layer}.self_attn.{one}_scale"] = torch.ones(1)
    folder = w.write_folder(tmp_path, model, tensors, config)
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    notes = explain(loaded).to_dict()["notes"]
    assert "float 8 bit, tensor" in notes[0]
    assert "4 scales, model.layers.0.self_attn.k_scale among them" in notes[1]
    assert list(inspect_checkpoint(folder).notes) == notes


def test_deepseeks_powers_of_two(tmp_path):
    """Scales in e8m0 bytes load; that activations are not scaled so is said."""
    model = w.tiny_model()

    def to_layer(weight):
        tensors, _ = f.fp8_layer(weight, block=(32, 32), scale_name="weight_scale_inv")
        scale = torch.exp2(torch.log2(tensors["weight_scale_inv"]).ceil())
        codes = f.e4m3(weight / f.spread(scale, 32, 32, weight.shape))
        tensors = {"weight": codes, "weight_scale_inv": scale.to(torch.float8_e8m0fnu)}
        return tensors, codes.float() * f.spread(scale, 32, 32, weight.shape)

    tensors = f.quantize_model(model, to_layer, f.round_fp8(32))
    config = fp8_config(weight_block_size=[32, 32], scale_fmt="ue8m0", fmt="e4m3")
    folder = w.write_folder(tmp_path, model, tensors, config)
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < 0.02
    assert any("amax / 448" in note for note in explain(loaded).notes)


def test_all_codes_of_e4m3fnuz(tmp_path):
    """Each of the 256 in a weight: NaN where e4m3fn has -0, and 240 where it has NaN."""
    model = w.tiny_model()
    tensors = f.quantize_model(model, fnuz(channel=True))
    codes = torch.arange(256, dtype=torch.uint8)
    weight = codes.repeat(24).reshape(96, 64)
    tensors[f"{LAYER}.weight"] = weight.view(torch.float8_e4m3fnuz)
    tensors[f"{LAYER}.weight_scale"] = torch.linspace(0.5, 2, 96)[:, None]
    config = f.ct("naive-quantized", {"strategy": "channel"})
    folder = w.write_folder(tmp_path, model, tensors, config)
    layer = load_model(folder, device="cpu").get_submodule(LAYER)
    expected = f.fnuz_floats(weight) * tensors[f"{LAYER}.weight_scale"]
    got = torch.stack([layer(row).detach() for row in torch.eye(64)]).t()
    # A row with the code of NaN is NaN in every product.
    nans = expected.isnan().any(1)
    assert nans.sum() == 24
    assert torch.equal(got[~nans], expected[~nans])
    assert got[nans].isnan().all()
    assert expected[~nans].abs().max() > 440
    assert "e4m3fnuz" in inspect_checkpoint(folder).layers[0].scheme


@pytest.mark.parametrize("name", ["fnuz channel", "fnuz static"])
def test_e4m3fnuz_has_no_negative_zero(tmp_path, name):
    """What e4m3fn has as -0 is NaN there: inputs that round to it must not become it."""
    to_layer, config, _ = FORMATS[name]
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, f.quantize_model(model, to_layer), config)
    layer = load_model(folder, device="cpu").get_submodule(LAYER)
    x = torch.full((3, 64), -0.0)
    x[1, 1:], x[1, 0] = -1e-9, 1.0
    x[2] = -1e-30
    assert layer(x).isfinite().all()


# -- checkpoints that lie ----------------------------------------------------------------------

LAYER = "model.layers.0.mlp.up_proj"
VALUE = "must be positive and finite"

LIES = {
    # name: (format, tensor, how it is changed, what the message says)
    "weight of another dtype": (
        "float channel",
        "weight",
        lambda t: t.float().to(torch.float8_e5m2),
        "float8_e5m2, needed is float8_e4m3fn",
    ),
    "e4m3fn where the config says e4m3fnuz": (
        "fnuz channel",
        "weight",
        lambda t: t.float().to(torch.float8_e4m3fn),
        "float8_e4m3fn, needed is float8_e4m3fnuz",
    ),
    "tensor scale where channels are said": (
        "float channel",
        "weight_scale",
        lambda t: t[:1].reshape(1),
        r"shape \[1\], needed is",
    ),
    "blocks of another size": (
        "fp8 block",
        "weight_scale_inv",
        lambda t: t[:, :1].repeat(1, 5),
        r"has shape \[3, 5\], needed is \[3, 2\]",
    ),
    "no input scale": ("fp8 static", "input_scale", None, "is missing"),
    "input scale of zero": ("fp8 static", "input_scale", torch.zeros_like, VALUE),
    "nvfp4 without its second scale": ("nvfp4", "weight_global_scale", None, "is missing"),
    "nvfp4 second scale of zero": ("nvfp4", "weight_global_scale", torch.zeros_like, VALUE),
    "nvfp4 block scales as bytes": (
        "modelopt nvfp4",
        "weight_scale",
        lambda t: t.view(torch.uint8),
        "uint8, needed is float8_e4m3fn",
    ),
    "nvfp4 input scale infinite": (
        "nvfp4, nvfp4",
        "input_global_scale",
        lambda t: t * float("inf"),
        VALUE,
    ),
    "mxfp4 scales of 16": (
        "mxfp4",
        "weight_scale",
        lambda t: t.repeat(1, 2),
        r"has shape \[96, 4\], needed is \[96, 2\]",
    ),
    "mxfp8 scales as floats": (
        "mxfp8",
        "weight_scale",
        lambda t: t.float(),
        "float32, needed is uint8 or float8_e8m0fnu",
    ),
    "int4 codes beyond 4 bits": ("int4 group, int8", "weight", lambda t: t * 16, "codes of 4 bits"),
}


@pytest.mark.parametrize("name", LIES)
def test_lie(tmp_path, name):
    fmt, suffix, change, text = LIES[name]
    to_layer, config, _ = FORMATS[fmt]
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, f.quantize_model(model, to_layer), config)
    tensors = load_file(folder / "model.safetensors")
    old = tensors.pop(f"{LAYER}.{suffix}")
    if change is not None:
        tensors[f"{LAYER}.{suffix}"] = change(old).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=text) as caught:
        load_model(folder, device="cpu")
    assert LAYER in str(caught.value)
    assert suffix in str(caught.value)


def test_fbgemms_bound_in_the_checkpoint(tmp_path):
    to_layer, config, _ = FORMATS["fbgemm_fp8"]
    model = w.tiny_model()
    tensors = f.quantize_model(model, to_layer)
    name = f"{LAYER}.input_scale_ub"
    for bound, fine in ((1.5, True), (2.0, False)):
        folder = tmp_path / str(bound)
        w.write_folder(folder, model, {**tensors, name: torch.tensor([bound])}, config)
        if fine:
            load_model(folder, device="cpu")
        else:
            with pytest.raises(errors.CheckpointError, match="input_scale_ub is 2, but the config"):
                load_model(folder, device="cpu")


def test_shapes_that_have_no_whole_blocks(tmp_path):
    model = w.tiny_model(intermediate_size=80)

    def to_layer(weight):
        scale = torch.zeros(weight.shape[0], weight.shape[1] // 32, dtype=torch.uint8)
        return {"weight": f.e4m3(weight), "weight_scale": scale}, weight

    tensors = f.quantize_model(model, to_layer)
    folder = w.write_folder(tmp_path, model, tensors, f.ct("mxfp8-quantized", MX8))
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"down_proj: .*K=80 is no mult"):
        load_model(folder, device="cpu")
