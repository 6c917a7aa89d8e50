"""gpt-oss checkpoints agree with the float model that holds the dequantized weights."""

from __future__ import annotations

import checkpoint_writers as w
import gpt_oss_writers as g
import pytest
import torch
import transformers
from qcore import errors
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedExperts

CLOSE = 1e-5
EXPERTS = "model.layers.1.mlp.experts"


@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_logits(tmp_path, gain, format_result):
    folder, model = g.write_gpt_oss(tmp_path, gain)
    loaded = load_model(folder, device="cpu")
    experts = [x for x in loaded.modules() if isinstance(x, QuantizedExperts)]
    assert len(experts) == 2
    error = w.relative_error(w.logits(loaded), w.logits(model))
    print(f"gain {gain}: {error:.1e}")
    assert error < CLOSE
    format_result(folder, loaded, error, CLOSE)


def test_the_bounds_of_gate_and_up_matter(tmp_path):
    """With the larger gain they do, so that the test above sees them."""
    model = g.tiny_gpt_oss(20.0)
    before = w.logits(model)
    for layer in model.model.layers:
        layer.mlp.experts.limit = 1e9
    assert w.relative_error(w.logits(model), before) > 0.01


def test_the_same_as_transformers_makes_of_it(tmp_path):
    """transformers dequantizes the same folder to the very weights that the writer says."""
    folder, model = g.write_gpt_oss(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    for ours, other in zip(model.model.layers, theirs.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            assert torch.equal(getattr(ours.mlp.experts, name), getattr(other.mlp.experts, name))
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(theirs.eval())) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(tmp_path, dtype):
    # All experts are chosen: no token goes to another one because its router rounds.
    folder, model = g.write_gpt_oss(tmp_path, num_experts_per_tok=4)
    expected = w.logits(model)
    loaded = load_model(folder, device="cpu", dtype=dtype)
    error = w.relative_error(w.logits(loaded), expected)
    usual = w.relative_error(w.logits(model.to(dtype)), expected)
    print(f"{dtype}: {error:.1e}, transformers {usual:.1e}")
    assert error < 3 * torch.finfo(dtype).eps


def test_memory_is_that_of_the_codes(tmp_path):
    """4.25 bits a weight and the biases; a kernel may take 16 bits for a scale."""
    folder, _ = g.write_gpt_oss(tmp_path)
    experts = load_model(folder, device="cpu").model.layers[0].mlp.experts
    count = 4 * 3 * 64 * 96
    held = sum(x.nbytes for x in (*experts.parameters(), *experts.buffers()))
    biases = 4 * 4 * (2 * 96 + 64)
    assert held <= count * 4.5 / 8 + biases + 4096


def test_experts_that_are_not_quantized(tmp_path):
    """Experts that are listed, or stored plain, are loaded as they are."""
    model = g.tiny_gpt_oss()
    plain = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = g.quantize_gpt_oss(model)
    first = "model.layers.0.mlp.experts."
    mixed = {k: v for k, v in tensors.items() if not k.startswith(first)}
    mixed |= {k: v for k, v in plain.items() if k.startswith(first)}
    model.load_state_dict(
        plain | {k: v for k, v in model.state_dict().items() if not k.startswith(first)}
    )
    lists = (None, [*g.CONFIG["modules_to_not_convert"], "model.layers.0.mlp.experts"])
    for listed in lists:
        config = {**g.CONFIG, "modules_to_not_convert": listed}
        loaded = load_model(w.write_folder(tmp_path, model, mixed, config), device="cpu")
        assert sum(isinstance(x, QuantizedExperts) for x in loaded.modules()) == 1
        assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


def test_explain_and_inspect(tmp_path):
    folder, _ = g.write_gpt_oss(tmp_path)
    loaded = load_model(folder, device="cpu")
    row = {row.layer: row for row in explain(loaded).rows}[EXPERTS]
    assert row.scheme == "4 experts of 96, swigluoai, mxfp4, bias, float32 activations"
    assert row.kernel.endswith("MoeMxfp4Kernel")
    report = inspect_checkpoint(folder, target="cuda:sm_90")
    assert report.method == "mxfp4"
    layer = {layer.layer: layer for layer in report.layers}[EXPERTS]
    assert layer.scheme == "mxfp4 experts of gpt-oss"
    assert layer.decision.config == row.decision.config
    assert layer.nbytes == 4 * 3 * 64 * 96 * 17 // 32 + 4 * 4 * (2 * 96 + 64)


def test_through_transformers(tmp_path):
    """`from_pretrained` through qcore gives the same, and saves the checkpoint's own tensors."""
    from safetensors.torch import load_file
    from transformers_cases import from_pretrained, same

    folder, _ = g.write_gpt_oss(tmp_path / "source")
    loaded = from_pretrained(folder)
    same(loaded, load_model(folder))
    loaded.save_pretrained(tmp_path / "saved")
    before, after = (load_file(x / "model.safetensors") for x in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# -- bad input -----------------------------------------------------------------------------------


def replaced(name, fn):
    def damage(tensors):
        tensors[f"{EXPERTS}.{name}"] = fn(tensors[f"{EXPERTS}.{name}"]).contiguous()

    return damage


BAD = {
    "scales missing": (
        lambda t: t.pop(f"{EXPERTS}.gate_up_proj_scales"),
        r"gate_up_proj_scales \(e8m0 scales\) is missing: the config says mxfp4 experts",
    ),
    "blocks missing": (
        lambda t: t.pop(f"{EXPERTS}.gate_up_proj_blocks"),
        r"gate_up_proj_blocks \(e2m1 codes\) is missing",
    ),
    "bias missing": (
        lambda t: t.pop(f"{EXPERTS}.down_proj_bias"),
        r"down_proj_bias \(biases\) is missing",
    ),
    "an expert too few": (
        replaced("down_proj_blocks", lambda t: t[:3]),
        r"down_proj_blocks has shape \[3, 64, 3, 16\], needed is \[4, 64, 3, 16\]",
    ),
    "blocks of half the inputs": (
        replaced("down_proj_blocks", lambda t: t[..., :8]),
        r"down_proj_blocks has shape \[4, 64, 3, 8\]",
    ),
    "scales of other blocks": (
        replaced("down_proj_scales", lambda t: t.repeat(1, 1, 2)),
        r"down_proj_scales has shape \[4, 64, 6\], needed is \[4, 64, 3\]",
    ),
    "scales as floats": (
        replaced("down_proj_scales", torch.Tensor.float),
        "down_proj_scales is float32, needed is uint8",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_experts(tmp_path, name):
    model = g.tiny_gpt_oss()
    tensors = g.quantize_gpt_oss(model)
    damage, text = BAD[name]
    damage(tensors)
    folder = w.write_folder(tmp_path, model, tensors, g.CONFIG)
    for read in (load_model, inspect_checkpoint):
        with pytest.raises(errors.CheckpointError, match=f"{EXPERTS}.{text}"):
            read(folder)


def test_a_tensor_too_many(tmp_path):
    model = g.tiny_gpt_oss()
    tensors = g.quantize_gpt_oss(model)
    tensors[f"{EXPERTS}.down_proj_zeros"] = torch.zeros(1)
    with pytest.raises(errors.CheckpointError, match=r"1 unexpected: .*down_proj_zeros"):
        load_model(w.write_folder(tmp_path, model, tensors, g.CONFIG))


def test_sizes_that_are_no_whole_blocks(tmp_path):
    model = g.tiny_gpt_oss(intermediate_size=80)
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    for i in range(2):
        prefix = f"model.layers.{i}.mlp.experts."
        del tensors[f"{prefix}gate_up_proj"], tensors[f"{prefix}down_proj"]
    folder = w.write_folder(tmp_path, model, tensors, g.CONFIG)
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"size is 80; .*multiple of 32"):
        load_model(folder)


@pytest.mark.parametrize("change", [{"swiglu_limit": 5.0}, {"swiglu_alpha": 1.0}])
def test_experts_that_compute_otherwise(tmp_path, change):
    folder, _ = g.write_gpt_oss(tmp_path, **change)
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"swigluoai.*not supported"):
        load_model(folder)


def test_another_model_with_the_method(tmp_path):
    import moe_writers as m

    model = m.tiny_mixture("MixtralForCausalLM")
    folder = w.write_folder(tmp_path, model, m.plain_mixture(model), g.CONFIG)
    with pytest.raises(errors.CheckpointError, match="but no layer is stored so"):
        load_model(folder)


def test_a_pattern_that_is_none(tmp_path):
    model = g.tiny_gpt_oss()
    config = {**g.CONFIG, "modules_to_not_convert": ["model.(layers"]}
    folder = w.write_folder(tmp_path, model, g.quantize_gpt_oss(model), config)
    with pytest.raises(errors.CheckpointError, match="is no regular expression"):
        load_model(folder)
