"""What is written is read by `qcore.load_model`, and gives the logits of its own weights."""

import json

import pytest
import torch
from qcore.facts.scalar_type import ScalarType
from qcore.layers import MPLinearLayerConfig
from qcore.models import explain, load_model
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantize import QuantizeScheme, quantize_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers")


def dequantized(folder, schemes):
    """Every weight of a checkpoint, in float32."""
    weights = {}
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        layer, _, suffix = name.rpartition(".")
        if suffix == "weight_packed":
            scheme = schemes["lm_head" if layer == "lm_head" else "rest"]
            N, K = tensors[f"{layer}.weight_shape"].tolist()
            bias = 0 if not scheme.symmetric else 1 << (scheme.bits - 1)
            config = MPLinearLayerConfig(
                (K, N),
                (K, N),
                ScalarType.uint(scheme.bits, bias),
                torch.float32,
                scheme.group_size,
                not scheme.symmetric,
            )
            parts = {key: tensors.get(f"{layer}.{key}") for key in config.params()}
            weights[f"{layer}.weight"] = dequantize_weight(config, parts)
        elif suffix == "weight" and tensor.dtype == torch.int8:
            weights[name] = tensor.float() * tensors[f"{layer}.weight_scale"].float()
        elif suffix in ("weight", "bias"):
            weights[name] = tensor.float()
    return weights


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.float()


@pytest.mark.parametrize(
    ("source", "text", "head"),
    [
        ("llama", "int4-g32", None),
        ("llama", "int4-asym-g32", None),
        ("llama", "int8-g32", "int4-g32"),
        ("llama", "int2-g32", None),
        ("llama", "int8", None),
        ("tied_llama", "int4-g32", None),
        ("tied_llama", "int4-channel", "int8-channel"),
    ],
)
def test_logits_are_those_of_the_rounded_weights(request, tmp_path, source, text, head):
    folder = tmp_path / "out"
    source = request.getfixturevalue(source)
    quantize_checkpoint(source, folder, scheme=text, lm_head_scheme=head)
    model = load_model(folder, dtype=torch.float32, device="cpu")
    assert len(explain(model).rows) == 14 + (head is not None)

    schemes = {"rest": QuantizeScheme.parse(text), "lm_head": QuantizeScheme.parse(head or text)}
    weights = dequantized(folder, schemes)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)).eval()
    lacking = plain.load_state_dict(weights, strict=False)
    assert lacking.unexpected_keys == []
    assert set(lacking.missing_keys) <= {"lm_head.weight"}
    if "lm_head.weight" in lacking.missing_keys:
        assert config["tie_word_embeddings"]
    ids = torch.arange(24).reshape(2, 12)
    expected, found = logits(plain, ids), logits(model, ids)
    error = (found - expected).norm() / expected.norm()
    # int8 rounds the activations as well; the rest differs by float32 rounding alone.
    assert error < (0.1 if text == "int8" else 1e-4)


def test_the_metadata_says_who_wrote_it(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int4-g32")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
        assert opened.metadata()["quantized_by"].startswith("qcore ")
