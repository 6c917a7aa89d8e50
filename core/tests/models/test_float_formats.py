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
from float_cases import FORMATS, LAYER, STATIC, Q, fnuz, fp8, fp8_config, modelopt, nvfp4
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedLinear

CLOSE = 1e-5


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
