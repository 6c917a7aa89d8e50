"""Scales of the KV cache, from checkpoints."""

import json
import math

import pytest
import torch
from qcore import explain, load_model
from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.models import Fp8Cache, KVScales, fp8_cache, inspect_checkpoint
from qcore.quantization.linear import QuantizedLinear
from transformers import DynamicCache

import checkpoint_writers as w  # isort: skip
import float_writers as f  # isort: skip

SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
SCALES = {0: KVScales(0.02, 0.5), 1: KVScales(0.25, 0.0625)}
WEIGHTS = ("float-quantized", {"strategy": "channel"})
NAMES = {
    "compressed-tensors": "{one}_scale",
    "vLLM": "attn.{one}_scale",
    "ModelOpt": "{one}_proj.{one}_scale",
    "AutoFP8": "{one}_proj.output_scale",
}


def checkpoint(folder, scales, scheme=SCHEME, name="LlamaForCausalLM", **changes):
    """A tiny model in FP8 with more tensors: ``scales``, by their names after the layer's."""
    model = w.tiny_model(name, **changes)
    tensors = f.quantize_model(model, lambda weight: f.fp8_layer(weight, channel=True))
    tensors |= {f"model.layers.{key}": value for key, value in scales.items()}
    more = {} if scheme is None else {"kv_cache_scheme": scheme}
    return w.write_folder(folder, model, tensors, f.ct(*WEIGHTS, **more))


def named(pattern, scales=SCALES, shape=(1,)):
    return {
        f"{layer}.self_attn.{pattern.format(one=one)}": torch.tensor(value).reshape(shape)
        for layer, pair in scales.items()
        for one, value in (("k", pair.k), ("v", pair.v))
    }


def of(cache):
    return {n: KVScales(layer.k_scale, layer.v_scale) for n, layer in enumerate(cache.layers)}


def near(scales):
    """float32 values of numbers that are none."""
    as_float32 = lambda x: float(torch.tensor(x))  # noqa: E731
    return {n: KVScales(as_float32(s.k), as_float32(s.v)) for n, s in scales.items()}


@pytest.mark.parametrize("producer", NAMES)
def test_each_producers_names(tmp_path, producer):
    shape = () if producer == "ModelOpt" else (1,)
    folder = checkpoint(tmp_path, named(NAMES[producer], shape=shape))
    model = load_model(folder, device="cpu")
    assert model._qcore_kv_scales == near(SCALES)
    assert of(fp8_cache(model)) == near(SCALES)
    assert of(fp8_cache(model, {})) == {0: KVScales(), 1: KVScales()}
    assert fp8_cache(model, "dynamic").dynamic
    notes = explain(model).to_dict()["notes"]
    assert "(float 8 bit, tensor); qcore.models.fp8_cache(model) makes it" in notes[0]
    assert "4 scales, model.layers.0.self_attn." in notes[1]
    assert len(notes) == 2
    assert list(inspect_checkpoint(folder).notes) == notes


def test_the_cache_uses_them(tmp_path):
    """Coarse scales spoil the logits as much as they do in a cache that is given them."""
    folder = checkpoint(tmp_path, named("{one}_scale"))
    model = load_model(folder, device="cpu")
    assert any(isinstance(m, QuantizedLinear) for m in model.modules())

    def logits(cache):
        with torch.no_grad():
            return model(torch.arange(12).reshape(1, 12), past_key_values=cache).logits

    expected = logits(Fp8Cache(model.config, SCALES))
    assert torch.equal(logits(fp8_cache(model)), expected)
    assert not torch.equal(logits(Fp8Cache(model.config)), expected)
    assert not torch.equal(logits(DynamicCache(config=model.config)), expected)


def test_one_scale_for_both(tmp_path):
    both = {f"{n}.self_attn.kv_scale": torch.tensor(0.5, dtype=torch.bfloat16) for n in (0, 1)}
    model = load_model(checkpoint(tmp_path, both, scheme=None), device="cpu")
    assert of(fp8_cache(model)) == dict.fromkeys((0, 1), KVScales(0.5, 0.5))
    assert len(explain(model).notes) == 1


def test_sliding_windows_have_theirs(tmp_path):
    folder = checkpoint(
        tmp_path,
        named("{one}_scale"),
        name="Gemma3ForCausalLM",
        head_dim=16,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    )
    assert of(fp8_cache(load_model(folder, device="cpu"))) == near(SCALES)


def test_missing_scales_are_ones_and_said_so(tmp_path):
    model = load_model(checkpoint(tmp_path / "none", {}), device="cpu")
    assert of(fp8_cache(model)) == {0: KVScales(), 1: KVScales()}
    assert "k of layer 0, v of layer 0, k of layer 1, v of layer 1; an" in explain(model).notes[1]
    one = {"1.self_attn.v_scale": torch.tensor(0.5)}
    model = load_model(checkpoint(tmp_path / "one", one), device="cpu")
    assert of(fp8_cache(model)) == {0: KVScales(), 1: KVScales(1.0, 0.5)}
    assert "k of layer 0, v of layer 0, k of layer 1; an" in explain(model).notes[2]
    model = load_model(checkpoint(tmp_path / "unasked", {}, scheme=None), device="cpu")
    assert explain(model).notes == ()


def test_dynamic_schemes(tmp_path):
    folder = checkpoint(tmp_path, {}, {**SCHEME, "dynamic": True, "strategy": "token"})
    model = load_model(folder, device="cpu")
    assert fp8_cache(model).dynamic
    assert len(explain(model).notes) == 1


def test_other_schemes(tmp_path):
    """The model loads, as its weights are fine, and says why there is no such cache."""
    folder = checkpoint(tmp_path, named("{one}_scale"), {**SCHEME, "num_bits": 4})
    model = load_model(folder, device="cpu")
    notes = explain(model).notes
    assert "it stays in the model's dtype" in notes[0]
    assert "num_bits is 4" in notes[0]
    assert "4 tensors are not applied" in notes[1]
    with pytest.raises(UnsupportedQuantizationError, match="num_bits is 4"):
        fp8_cache(model)
    assert fp8_cache(model, "dynamic").dynamic


def test_scales_of_other_things_are_not_applied(tmp_path):
    more = {"0.self_attn.q_scale": torch.ones(1), "0.self_attn.k_zero_point": torch.zeros(1)}
    model = load_model(checkpoint(tmp_path, {**named("{one}_scale"), **more}), device="cpu")
    assert of(fp8_cache(model)) == near(SCALES)
    assert any("2 tensors are not applied" in note for note in explain(model).notes)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("0.self_attn.k_scale", torch.tensor(0.0), "k_scale is 0.0; it must be positive"),
        ("1.self_attn.v_scale", torch.tensor([-1.0]), "v_scale is -1.0"),
        ("1.self_attn.v_scale", torch.tensor(math.nan), "v_scale is nan"),
        ("0.self_attn.k_scale", torch.tensor(math.inf), "k_scale is inf"),
        ("0.self_attn.k_scale", torch.ones(2), r"k_scale float32 \[2\]; a scale .* is one float"),
        ("0.self_attn.k_scale", torch.tensor(1), "k_scale int64"),
        ("0.self_attn.k_proj.k_scale", torch.tensor(3.0), "both are the k scale of layer 0"),
        ("9.self_attn.k_scale", torch.tensor(1.0), "layers.9.self_attn.k_scale.* no such layer"),
    ],
)
def test_bad_scales(tmp_path, key, value, text):
    folder = checkpoint(tmp_path, {**named("{one}_scale"), key: value})
    with pytest.raises(CheckpointError, match=text):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "kv_cache_scheme": "static"}, 1),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, 0),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, 0),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
                "kv_cache_quant_algo": "FP8",
            },
            1,
        ),
    ],
)
def test_other_methods(tmp_path, config, asked):
    folder = checkpoint(tmp_path, named("{one}_proj.{one}_scale", shape=()))
    values = json.loads((folder / "config.json").read_text())
    config = {**config, "exclude_modules": ["lm_head"], "ignored_layers": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": config}))
    model = load_model(folder, device="cpu")
    assert of(fp8_cache(model)) == near(SCALES)
    assert len(explain(model).notes) == 1 + asked
