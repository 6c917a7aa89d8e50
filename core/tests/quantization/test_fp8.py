from __future__ import annotations

import pytest
import torch
from qcore import errors
from qcore.facts.quant_key import (
    GroupShape,
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8StaticTensorSym,
)
from qcore.layers.params import check_params
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantization.fbgemm_fp8 import FBGEMMFp8Config
from qcore.quantization.fp8 import Fp8Config
from qcore.reference.linear import reference_linear

LINEAR = torch.nn.Linear(1, 1, device="meta")


def read(**fields):
    return Fp8Config.from_config({"quant_method": "fp8", "activation_scheme": "dynamic", **fields})


def test_schemes():
    plain = read().scheme
    assert (plain.weights, plain.inputs) == (None, kFp8DynamicTokenSym)
    assert plain.layer_config(64, 32, torch.bfloat16).kernel_type == "fp8"
    assert plain.refined({"weight_scale": (1,)}).weights == GroupShape.PER_TENSOR
    assert plain.refined({"weight_scale_inv": ()}).scale_names == ("weight_scale_inv",)
    assert plain.refined({"weight_scale": (32, 1)}).weights == GroupShape.PER_CHANNEL
    assert read(activation_scheme="static").scheme.inputs == kFp8StaticTensorSym
    block = read(weight_block_size=[128, 128]).scheme
    assert (block.weights, block.inputs) == (GroupShape(128, 128), kFp8Dynamic128Sym)
    assert block.describe() == "fp8 128x128 weights, dynamic 1x128 activations"


def test_layers_that_are_not_quantized():
    for name in ("ignored_layers", "modules_to_not_convert"):
        config = read(**{name: ["lm_head", "model.layers.0.mlp", "gate"]})
        for prefix in ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.3.mlp.gate"):
            assert config.get_quant_method(LINEAR, prefix) is None
        for prefix in ("model.layers.0.mlp2", "model.layers.3.mlp.gate_proj"):
            assert config.get_quant_method(LINEAR, prefix) is config.scheme
    assert read().get_quant_method(torch.nn.Embedding(1, 1), "x") is None


def test_notes():
    assert read().notes() == ()
    assert "powers of two" in read(scale_fmt="ue8m0").notes()[0]
    assert "KV cache" in read(kv_cache_scheme={"type": "float"}).notes()[0]
    for name in (
        "model.layers.0.self_attn.k_scale",
        "model.layers.0.self_attn.v_proj.output_scale",
        "model.layers.0.self_attn.attn.q_scale",
        "model.layers.0.self_attn.k_proj.k_scale",
    ):
        assert read().unapplied(name) is not None
    for name in ("model.layers.0.self_attn.k_proj.weight_scale", "model.k_scale.weight"):
        assert read().unapplied(name) is None


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"activation_scheme": "none"}, errors.UnsupportedQuantizationError, "'none'.*dynamic"),
        ({"activation_scheme": None}, errors.CheckpointError, "activation_scheme is missing"),
        ({"weight_block_size": [128]}, errors.CheckpointError, "weight_block_size is \\[128\\]"),
        ({"weight_block_size": [128, -1]}, errors.CheckpointError, "two positive integers"),
        ({"weight_block_size": 128}, errors.CheckpointError, "weight_block_size is 128"),
        ({"fmt": "e5m2"}, errors.UnsupportedQuantizationError, "fmt is 'e5m2'"),
        ({"store_dtype": "mxfp4"}, errors.UnsupportedQuantizationError, "store_dtype is 'mxfp4'"),
        ({"scale_fmt": "e5"}, errors.UnsupportedQuantizationError, "scale_fmt is 'e5'"),
        ({"ignored_layers": "lm_head"}, errors.CheckpointError, "a list of strings"),
    ],
)
def test_bad_config(change, error, text):
    with pytest.raises(error, match=text) as caught:
        read(**change)
    assert type(caught.value) is error


@pytest.mark.parametrize("ragged", [False, True])
def test_block_scales_multiply(ragged):
    K, N = (300, 130) if ragged else (256, 128)
    scheme = read(weight_block_size=[128, 128]).scheme
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(N, K, generator=g).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-N // 128), -(-K // 128), generator=g)
    tensors = {"weight": weight, "weight_scale_inv": scale}
    check_params(scheme.checkpoint_tensors(K, N), tensors, "layer")
    assert scheme.infer_shape({k: tuple(v.shape) for k, v in tensors.items()}) == (K, N)
    layer = scheme.canonicalize(tensors, K, N, torch.float32)
    check_params(layer.config.params(), layer.tensors, "layer")
    wide = scale.repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    got = dequantize_weight(layer.config, layer.tensors)
    assert torch.equal(got, weight.float() * wide)


# -- FBGEMM ------------------------------------------------------------------------------------


def test_fbgemms_bound_saturates():
    config = FBGEMMFp8Config.from_config({"activation_scale_ub": 4, "modules_to_not_convert": []})
    assert config.describe() == "fbgemm_fp8 channel weights, dynamic token activations up to 4"
    tensors = {
        "weight": torch.eye(8).to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(8, 1),
    }
    check_params(config.scheme.checkpoint_tensors(8, 8), tensors, "layer")
    layer = config.scheme.canonicalize(tensors, 8, 8, torch.float32)
    check_params(layer.config.params(), layer.tensors, "layer")
    x = torch.tensor([[1.0, -2.0, 4.0, 9.0, 0, 0, 0, 0]])
    out = reference_linear(layer.config, layer.tensors, x)
    assert out[0, 3] == 4.0
    assert torch.allclose(out[0, :3], x[0, :3], rtol=0.07)
    assert FBGEMMFp8Config.from_config({}).scheme.input_scale_ub == 1200.0


@pytest.mark.parametrize("bound", [0, -1, "1200", True, float("inf"), float("nan")])
def test_fbgemms_bad_bound(bound):
    with pytest.raises(errors.CheckpointError, match="activation_scale_ub is"):
        FBGEMMFp8Config.from_config({"activation_scale_ub": bound})
