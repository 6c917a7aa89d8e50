"""Mixtures of experts agree with the float model that holds the same, dequantized, weights."""

from __future__ import annotations

import checkpoint_writers as w
import moe_writers as m
import pytest
import torch
from qcore import errors
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.quantization import QuantizedExperts

CLOSE = 1e-5

FORMATS = {
    "gptq": (w.gptq_tensors, w.gptq_config(), {}),
    "gptq asymmetric": (w.gptq_tensors, w.gptq_config(sym=False), {"sym": False}),
    "gptq act order": (w.gptq_tensors, w.gptq_config(desc_act=True), {"permute": True}),
    "gptq 8 bit channel": (
        w.gptq_tensors,
        w.gptq_config(bits=8, group_size=-1),
        {"bits": 8, "group": -1},
    ),
    "gptq 3 bit": (w.gptq_tensors, w.gptq_config(bits=3), {"bits": 3}),
    "gptq wide group": (w.gptq_tensors, w.gptq_config(group_size=64), {"group": 64}),
    "awq": (
        w.awq_tensors,
        w.awq_config(modules_to_not_convert=["gate", "shared_expert_gate", "lm_head"]),
        {"sym": False},
    ),
    "w4a16": (
        lambda r: w.packed_tensors(r, True),
        w.ct_config(ignore=["lm_head", "re:.*gate$"]),
        {},
    ),
    "w4a16 asymmetric": (
        lambda r: w.packed_tensors(r, False),
        w.ct_config(weights={"symmetric": False}, ignore=["lm_head", "re:.*gate$"]),
        {"sym": False},
    ),
    "w8a16 channel": (
        lambda r: w.packed_tensors(r, True),
        w.ct_config(
            weights={"num_bits": 8, "strategy": "channel", "group_size": None},
            ignore=["lm_head", "re:.*gate$"],
        ),
        {"bits": 8, "group": -1},
    ),
    "int-quantized weight only": (
        w.int8_tensors,
        w.ct_config(
            "int-quantized",
            {"num_bits": 8, "strategy": "channel", "group_size": None},
            ignore=["lm_head", "re:.*gate$"],
        ),
        {"bits": 8, "group": -1},
    ),
}


@pytest.mark.parametrize("architecture", m.SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_format(tmp_path, name, architecture, format_result):
    to_tensors, config, how = FORMATS[name]
    model = m.tiny_mixture(architecture)
    folder = w.write_folder(tmp_path, model, m.quantize_mixture(model, to_tensors, **how), config)
    loaded = load_model(folder, device="cpu")
    experts = [x for x in loaded.modules() if isinstance(x, QuantizedExperts)]
    assert len(experts) == len(m.experts_modules(model)) == 2
    error = w.relative_error(w.logits(loaded), w.logits(model))
    print(f"{architecture} {name}: {error:.1e}")
    assert error < CLOSE
    format_result(folder, loaded, error, CLOSE)


@pytest.mark.parametrize("architecture", m.SIZES)
def test_plain_experts(tmp_path, architecture):
    model = m.tiny_mixture(architecture)
    folder = w.write_folder(tmp_path, model, m.plain_mixture(model))
    loaded = load_model(folder, device="cpu")
    assert torch.equal(w.logits(loaded), w.logits(model))


@pytest.mark.parametrize("architecture", m.SIZES)
def test_same_as_transformers(tmp_path, architecture):
    """The writer's names are those that transformers reads."""
    model = m.tiny_mixture(architecture)
    folder = w.write_folder(tmp_path, model, m.plain_mixture(model))
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert w.relative_error(w.logits(loaded.eval()), w.logits(model)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(tmp_path, dtype):
    model = m.tiny_mixture("MixtralForCausalLM")
    tensors = m.quantize_mixture(model, w.gptq_tensors)
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config())
    loaded = load_model(folder, device="cpu", dtype=dtype)
    error = w.relative_error(w.logits(loaded), w.logits(model))
    assert error < 3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_activations(tmp_path, activation):
    model = m.tiny_mixture("MixtralForCausalLM", hidden_act=activation)
    tensors = m.quantize_mixture(model, w.gptq_tensors)
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config())
    loaded = load_model(folder, device="cpu")
    name = {"gelu_pytorch_tanh": "gelu_tanh"}.get(activation, activation)
    configs = {x.kernel.config for x in loaded.modules() if isinstance(x, QuantizedExperts)}
    assert {config.activation for config in configs} == {name}
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE
    assert {
        row.decision.config.activation
        for row in inspect_checkpoint(folder, target="cpu").layers
        if row.layer.endswith("experts")
    } == {name}


def test_zero_points_of_some_experts_only(tmp_path):
    """Zero points that say nothing are left out of a layer; all of the stack have them or none."""
    model = m.tiny_mixture("MixtralForCausalLM")
    tensors = m.quantize_mixture(model, w.gptq_tensors, sym=False)
    symmetric = m.tiny_mixture("MixtralForCausalLM")
    others = m.quantize_mixture(symmetric, w.gptq_tensors)
    prefix = "model.layers.0.block_sparse_moe.experts.1."
    tensors |= {k: v for k, v in others.items() if k.startswith(prefix)}
    for name in ("gate_up_proj", "down_proj"):
        ours, theirs = (getattr(x.model.layers[0].mlp.experts, name) for x in (model, symmetric))
        ours[1] = theirs[1]
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config(sym=False))
    loaded = load_model(folder, device="cpu")
    assert loaded.model.layers[0].mlp.experts.kernel.config.zero_points
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


def test_experts_that_the_config_leaves_out_are_loaded_plain(tmp_path):
    model = m.tiny_mixture("Qwen3MoeForCausalLM")
    plain = m.plain_mixture(model)
    tensors = w.quantize_model(model, lambda r: w.packed_tensors(r, True))
    experts = {k: v for k, v in plain.items() if ".experts." in k}
    tensors = {k: v for k, v in tensors.items() if ".experts." not in k} | experts
    config = w.ct_config(ignore=["lm_head", "re:.*gate$", r"re:.*\.experts\..*"])
    loaded = load_model(w.write_folder(tmp_path, model, tensors, config), device="cpu")
    assert not any(isinstance(x, QuantizedExperts) for x in loaded.modules())
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


# -- what is shown -------------------------------------------------------------------------------


@pytest.fixture
def mixtral(tmp_path):
    model = m.tiny_mixture("MixtralForCausalLM")
    tensors = m.quantize_mixture(model, w.gptq_tensors)
    return tmp_path, model, tensors, w.gptq_config()


def test_explain_and_inspect_show_experts_as_layers(mixtral):
    folder = w.write_folder(*mixtral)
    loaded = load_model(folder, device="cpu")
    rows = {row.layer: row for row in explain(loaded).rows}
    row = rows["model.layers.0.mlp.experts"]
    assert row.scheme.startswith("4 experts of 96, silu, uint4b8 g32")
    assert row.kernel.endswith("MoeWNA16Kernel")
    assert row.shape == "64 x 64"
    report = inspect_checkpoint(folder, target="cpu")
    found = {layer.layer: layer for layer in report.layers}
    layer = found["model.layers.0.block_sparse_moe.experts"]
    assert len(found) == len(rows)
    assert layer.decision.config == row.decision.config
    assert layer.nbytes == sum(
        v.nbytes for k, v in mixtral[2].items() if k.startswith(layer.layer + ".")
    )
    assert "moe_wna16" in str(layer.decision.to_dict())
    assert "QuantizedExperts" in repr(loaded)


def test_steps_and_module(mixtral):
    steps = []
    loaded = load_model(
        w.write_folder(*mixtral), device="cpu", progress=lambda *step: steps.append(step)
    )
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert "model.layers.1.mlp.experts" in {name for _, _, name in steps}
    experts = loaded.model.layers[0].mlp.experts
    with pytest.raises(errors.WeightError, match="selected for"):
        loaded.to(torch.bfloat16)
    with pytest.raises(errors.WeightError, match="need the routing"):
        experts.kernel.apply_weights(experts, torch.zeros(1, 64))


# -- bad input -----------------------------------------------------------------------------------

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w3"
LOADED = EXPERT.replace("block_sparse_moe", "mlp")


def gone(name):
    return lambda t: t.pop(f"{EXPERT}.{name}")


def changed(name, fn):
    return lambda t: t.update({f"{EXPERT}.{name}": fn(t[f"{EXPERT}.{name}"]).clone()})


def replaced(tensors):
    for name in [k for k in tensors if k.startswith(EXPERT)]:
        tensors.pop(name)
    tensors[f"{EXPERT}.weight"] = torch.zeros(96, 64)


BAD = {
    "missing tensor": (gone("scales"), f"{LOADED}.scales .scales. is missing"),
    "missing expert": (
        lambda t: [t.pop(k) for k in list(t) if k.startswith(EXPERT)],
        f"{LOADED}.qweight .* is missing",
    ),
    "wrong shape": (
        changed("qweight", lambda t: t[:-1]),
        rf"{LOADED}.qweight has shape \[7, 96\], needed is \[8, 96\]",
    ),
    "wrong dtype": (changed("qweight", torch.Tensor.long), f"{LOADED}.qweight is int64"),
    "one expert too many": (
        lambda t: t.update({EXPERT.replace(".2.", ".4.") + ".qweight": torch.zeros(1)}),
        "1 unexpected: .*experts.4.w3.qweight",
    ),
    "a bias": (
        lambda t: t.update({f"{EXPERT}.bias": torch.ones(96)}),
        f"{LOADED}.bias is not zero",
    ),
    "lying sym": (
        changed("qzeros", lambda t: t * 0 + 0x12345678),
        f"{LOADED}: the config says symmetric",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_experts(mixtral, name):
    folder, model, tensors, config = mixtral
    damage, text = BAD[name]
    damage(tensors)
    with pytest.raises(errors.CheckpointError, match=text):
        load_model(w.write_folder(folder, model, tensors, config), device="cpu")


def test_a_bias_of_zeros_is_none(mixtral):
    mixtral[2][f"{EXPERT}.bias"] = torch.zeros(96)
    loaded = load_model(w.write_folder(*mixtral), device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(mixtral[1])) < CLOSE


@pytest.mark.parametrize("name", ["missing tensor", "missing expert"])
def test_inspection_finds_it_too(mixtral, name):
    BAD[name][0](mixtral[2])
    with pytest.raises(errors.CheckpointError, match=f"{EXPERT}.* is missing"):
        inspect_checkpoint(w.write_folder(*mixtral))


def test_experts_quantized_in_part(mixtral):
    replaced(mixtral[2])
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"GPTQ 4 bit g32.*, not at all"):
        load_model(w.write_folder(*mixtral), device="cpu")


def test_plain_experts_that_do_not_fit(tmp_path):
    model = m.tiny_mixture("Qwen3MoeForCausalLM")
    tensors = m.plain_mixture(model)
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    for damaged, text in (
        ({**tensors, name: torch.zeros(31, 64)}, rf"{name}.*needs floats \[32, 64\]"),
        ({k: v for k, v in tensors.items() if k != name}, f"{name} is missing; .* 6 experts"),
    ):
        with pytest.raises(errors.CheckpointError, match=text):
            load_model(w.write_folder(tmp_path, model, damaged), device="cpu")


def test_gate_and_up_in_other_orders(tmp_path, monkeypatch):
    real = m.expert_weights
    monkeypatch.setattr(
        m,
        "expert_weights",
        lambda model: [(name, i, view) for i, (name, _, view) in enumerate(real(model))],
    )
    model = m.tiny_mixture("MixtralForCausalLM")
    tensors = m.quantize_mixture(model, w.gptq_tensors, permute=True)
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config(desc_act=True))
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"expert 0 .*g_idx"):
        load_model(folder, device="cpu")


def test_experts_of_another_kind(tmp_path):
    """Experts with activations that the kernels do not have."""
    model = m.tiny_mixture("MixtralForCausalLM", hidden_act="relu")
    tensors = m.quantize_mixture(model, w.gptq_tensors)
    with pytest.raises(errors.UnsupportedQuantizationError, match="not a gated MLP with silu"):
        load_model(w.write_folder(tmp_path, model, tensors, w.gptq_config()), device="cpu")
