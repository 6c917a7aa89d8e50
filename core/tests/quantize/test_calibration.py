"""`calibrate`, and models with the scales that it finds."""

import json

import pytest
import torch
from qcore.errors import CheckpointError, ConfigError, WeightError
from qcore.models import load_model
from qcore.quantization.linear import QuantizedLinear
from qcore.quantize import (
    ActivationScales,
    QuantizeScheme,
    calibrate,
    quantize_checkpoint,
)
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers")

STATIC = ["int8-static", "int8-static-asym", "fp8-static"]


def tokens(sequences=6, length=32, vocabulary=120):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(vocabulary, (sequences, length), generator=generator)


def load(path, **options):
    return load_model(path, dtype=torch.float32, device="cpu", **options)


def inputs_of(model, ids, kind=torch.nn.Linear):
    """What goes into each layer and what comes out, in float64."""
    seen = {}
    handles = [
        module.register_forward_hook(
            lambda _m, x, y, name=name: seen.update({name: (x[0].double(), y.double())})
        )
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_the_ranges_are_those_of_the_inputs(llama):
    ids = tokens()
    model = load(llama)
    scales = calibrate(model, ids, scheme="int8-static")
    seen = inputs_of(model, ids)
    assert set(scales.ranges) == set(seen)
    assert "lm_head" in seen
    for name, (x, _) in seen.items():
        assert scales.ranges[name].low == pytest.approx(float(x.min()), rel=1e-5)
        assert scales.ranges[name].high == pytest.approx(float(x.max()), rel=1e-5)


def test_how_a_text_is_cut(llama):
    ids = tokens(2, 40)
    seen = []
    scales = calibrate(
        load(llama),
        ids.tolist(),
        scheme="fp8-static",
        sequence_length=16,
        max_sequences=5,
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert seen == [(i, 5) for i in range(1, 6)]  # 16, 16, 8; 16, 16
    parts = [ids[0, :16], ids[0, 16:32], ids[0, 32:], ids[1, :16], ids[1, 16:32]]
    found = calibrate(load(llama), parts, scheme="fp8-static")
    assert found.ranges == scales.ranges


@pytest.mark.parametrize("scheme", STATIC)
def test_what_is_lost_is_what_rounding_loses(llama, tmp_path, scheme):
    """|y - W x| is at most the rounding of x, times the sum of |W|, for text that was seen."""
    ids = tokens()
    quantize_checkpoint(
        llama, tmp_path / "out", scheme=scheme, scales=calibrate(load(llama), ids, scheme=scheme)
    )
    model = load(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    plain = load(llama)
    with torch.no_grad():
        expected, found = plain(ids).logits, model(ids).logits
    seen = inputs_of(model, ids, QuantizedLinear)
    assert len(seen) == 14
    for name, (x, y) in seen.items():
        weight = stored[f"{name}.weight"].double() * stored[f"{name}.weight_scale"].double()
        scale = stored[f"{name}.input_scale"].double()
        if scheme == "fp8-static":
            # Half a step of e4m3: 2**-4 of the value, 2**-10 of the scale where it is subnormal.
            rounding = (x.abs() * 2.0**-4).maximum(scale * 2.0**-10)
            limit = 448 * scale
        else:
            # Half a step; the zero point's own rounding moves the range by as much.
            rounding = torch.full_like(x, float(scale) * 0.5)
            limit = 127 * scale if scheme == "int8-static" else 255.5 * scale
        # Earlier layers move later inputs a little beyond the range that the float model had.
        rounding = rounding + (x.abs() - limit).clamp(min=0)
        if scheme == "int8-static-asym":
            zero = stored[f"{name}.input_zero_point"].double()
            low, high = (-128 - zero) * scale, (127 - zero) * scale
            rounding = scale * 0.5 + (x - high).clamp(min=0) + (low - x).clamp(min=0)
        bound = rounding @ weight.abs().t() + 1e-5 * y.abs().max()
        assert ((y - x @ weight.t()).abs() <= bound).all(), name
    # e4m3 moves weights and inputs by 0.026 of them each (int8 by less): 0.037 a layer, and the
    # square root of 15 layers times that, as the errors are independent.
    assert (found - expected).norm() < 0.15 * expected.norm()


def test_nvfp4_gets_its_global_scale(llama, tmp_path):
    ids = tokens()
    scales = calibrate(load(llama), ids, scheme="nvfp4", observer="percentile", percentile=99.0)
    quantize_checkpoint(llama, tmp_path / "out", scheme="nvfp4", scales=scales)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    expected = 448 * 6 / scales.ranges[name].amax
    assert stored[f"{name}.input_global_scale"].item() == pytest.approx(expected, rel=1e-6)
    assert stored[f"{name}.input_global_scale"].shape == (1,)
    with torch.no_grad():
        file, online = load(tmp_path / "out"), load(llama, quantize="nvfp4", scales=scales)
        assert torch.equal(file(ids).logits, online(ids).logits)
        plain = load(llama)(ids).logits
    assert (file(ids).logits - plain).norm() < 0.3 * plain.norm()


def test_the_config_names_the_observer(llama, tmp_path):
    scales = calibrate(load(llama), tokens(), scheme="int8-static-asym", observer="mse")
    quantize_checkpoint(llama, tmp_path / "out", scheme="int8-static-asym", scales=scales)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    inputs = config["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    assert inputs["observer"] == "mse"
    assert (inputs["strategy"], inputs["dynamic"], inputs["symmetric"]) == ("tensor", False, False)


@pytest.fixture(scope="module")
def llama_with_outliers(llama, tmp_path_factory):
    """One channel of the normed inputs is 300 times the others, and no weight looks at it."""
    model = transformers.LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for layer in model.model.layers:
        layer.input_layernorm.weight.data[0] *= 300
        for part in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, part).weight.data[:, 0] = 0
    folder = tmp_path_factory.mktemp("outliers") / "float"
    model.save_pretrained(folder)
    return folder


def test_a_percentile_leaves_outliers_out(llama_with_outliers):
    """Scales of q, k, v cover 300 times too much with minmax; 1/64 of the values are outliers."""
    ids = tokens()
    model = load(llama_with_outliers)
    with torch.no_grad():
        expected = model(ids).logits
    errors = {}
    for observer in ("minmax", "percentile"):
        scales = calibrate(model, ids, scheme="int8-static", observer=observer, percentile=98.0)
        # The others see no such channel: keep them as they were.
        targets = ["re:.*[qkv]_proj"]
        rounded = load(llama_with_outliers, quantize="int8-static", scales=scales, targets=targets)
        with torch.no_grad():
            errors[observer] = float((rounded(ids).logits - expected).norm())
    assert errors["percentile"] < 0.2 * errors["minmax"]


@pytest.mark.parametrize("scheme", STATIC)
def test_mse_rounds_inputs_no_worse_than_minmax(llama_with_outliers, scheme):
    """Its squared error on the inputs themselves; the range of minmax is one that it tries."""
    from qcore.numerics.activation_quant import scaled_fp8_quant, static_int8_quant

    ids = tokens()
    model = load(llama_with_outliers)
    seen = inputs_of(model, ids)
    errors = {}
    for observer in ("minmax", "mse"):
        scales = calibrate(model, ids, scheme=scheme, observer=observer)
        for name, (x, _) in seen.items():
            found = scales.tensors(name, QuantizeScheme.parse(scheme))
            scale, x = found["input_scale"], x.reshape(-1, x.shape[-1]).float()
            if scheme == "fp8-static":
                back = scaled_fp8_quant(x, scale)[0].double() * scale.double()
            else:
                zero = found.get("input_zero_point")
                codes = static_int8_quant(x, scale, None if zero is None else zero.int())
                back = (codes.double() - (0 if zero is None else int(zero))) * scale.double()
            errors.setdefault(name, []).append(float((back - x.double()).square().sum()))
    for name, (minmax, mse) in errors.items():
        assert mse <= minmax * 1.02, name  # a histogram stands for the values to 1/64


def test_scales_are_written_and_read(llama, tmp_path):
    scales = calibrate(load(llama), tokens(), scheme="fp8-static", observer="percentile")
    scales.save(tmp_path / "scales.json")
    assert ActivationScales.load(tmp_path / "scales.json") == scales
    for text in ("{}", '{"scheme": "int8", "observer": "x", "ranges": {"a": [1]}}', "[]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"bad\.json"):
            ActivationScales.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(
        '{"scheme": "int8", "observer": "x", "ranges": {"a": [2, 1]}}'
    )
    with pytest.raises(ConfigError, match="none of finite numbers"):
        ActivationScales.load(tmp_path / "bad.json")


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("some text", {}, "give tokenizer="),
        ([], {}, "there are no tokens"),
        (torch.zeros(2, 3), {}, "token numbers in one or two"),
        (torch.zeros(2, 3, 4, dtype=torch.long), {}, "token numbers in one or two"),
        ([[1, 500]], {}, "token 500 is beyond the model's vocabulary of 120"),
        ([[1, -1]], {}, "negative"),
        ([[1, 2]], {"sequence_length": 0}, "sequence_length is 0"),
        ([[1, 2]], {"max_sequences": 0}, "max_sequences is 0"),
        ([[1, 2]], {"scheme": "fp8"}, "no calibrated activations"),
        ([[1, 2]], {"observer": "best"}, "observer 'best'"),
    ],
)
def test_bad_arguments(llama, data, options, message):
    with pytest.raises(ConfigError, match=message):
        calibrate(load(llama), data, **{"scheme": "int8-static", **options})


def test_a_quantized_model_has_nothing_to_calibrate(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int8", lm_head=True)
    with pytest.raises(CheckpointError, match="quantized already"):
        calibrate(tmp_path / "out", [[1, 2]], scheme="int8-static")
    with pytest.raises(ConfigError, match="no float linear layer"):
        calibrate(load(tmp_path / "out"), [[1, 2]], scheme="int8-static")


def test_a_model_that_computes_no_numbers(llama):
    model = load(llama)
    model.model.layers[1].input_layernorm.weight.data[3] = float("inf")
    with pytest.raises(WeightError, match=r"layers\.1\.self_attn\.q_proj: NaN or infinity"):
        calibrate(model, [[1, 2]], scheme="int8-static")
    assert not any(module._forward_pre_hooks for module in model.modules())
