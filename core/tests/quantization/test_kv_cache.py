import math

import pytest
import torch
from qcore import errors
from qcore.quantization.kv_cache import Fp8KVCacheMethod, KVScales, is_kv_cache_scale

FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def scheme(**changes):
    return Fp8KVCacheMethod.from_scheme({**FP8, **changes}, "config")


def test_supported_schemes():
    assert scheme() == Fp8KVCacheMethod("float 8 bit, tensor")
    assert scheme(dynamic=True, strategy="token").dynamic
    assert Fp8KVCacheMethod.from_scheme("static", "config").refused is None
    assert Fp8KVCacheMethod.from_name("FP8") == Fp8KVCacheMethod("FP8")
    for nothing in (None, {}, ""):
        assert Fp8KVCacheMethod.from_scheme(nothing, "config") == Fp8KVCacheMethod()
    assert Fp8KVCacheMethod.from_name("NONE") == Fp8KVCacheMethod()
    assert Fp8KVCacheMethod().notes() == ()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"type": "int"}, "type is 'int'"),
        ({"type": None}, "type is None"),
        ({"num_bits": 4}, "num_bits is 4"),
        ({"strategy": "attn_head"}, "strategy is 'attn_head'"),
        ({"strategy": "token"}, "strategy is 'token'"),
        ({"symmetric": False}, "symmetric is False"),
    ],
)
def test_other_schemes_are_noted_and_their_scales_left_alone(changes, text):
    method = scheme(**changes)
    assert text in method.refused
    assert "it stays in the model's dtype" in method.notes()[0]
    assert method.scale_of("model.layers.0.self_attn.k_scale") is None


def test_another_format_of_modelopt():
    assert "NVFP4 is not supported" in Fp8KVCacheMethod.from_name("NVFP4").refused


@pytest.mark.parametrize("value", [7, ["fp8"], {**FP8, "num_bits": "8"}, {**FP8, "dynamic": "no"}])
def test_schemes_that_mean_nothing(value):
    with pytest.raises(errors.CheckpointError):
        Fp8KVCacheMethod.from_scheme(value, "config")


@pytest.mark.parametrize(
    ("suffix", "found"),
    [
        ("k_scale", ("", "k")),
        ("v_scale", ("", "v")),
        ("kv_scale", ("", "kv")),
        ("attn.k_scale", (".attn", "k")),
        ("k_proj.k_scale", (".k_proj", "k")),
        ("v_proj.v_scale", (".v_proj", "v")),
        ("qkv_proj.k_scale", (".qkv_proj", "k")),
        ("k_proj.output_scale", ("", "k")),
        ("v_proj.output_scale", ("", "v")),
        ("q_scale", None),
        ("prob_scale", None),
        ("k_zero_point", None),
        ("q_proj.output_scale", None),
        ("k_proj.weight_scale", None),
    ],
)
@pytest.mark.parametrize("attention", ["model.layers.3.self_attn", "h.0.attention", "b.1.mixer"])
def test_names(attention, suffix, found):
    expected = None if found is None else (attention + found[0], found[1])
    assert Fp8KVCacheMethod().scale_of(f"{attention}.{suffix}") == expected
    assert is_kv_cache_scale(f"{attention}.{suffix}") == (suffix != "k_proj.weight_scale")


def test_names_that_are_not_of_attention():
    assert Fp8KVCacheMethod().scale_of("model.layers.0.mlp.k_scale") is None
    assert Fp8KVCacheMethod().scale_of("model.layers.0.attn_norm.k_scale") is None


def test_a_scale():
    read = Fp8KVCacheMethod().read_scale
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert read(torch.tensor([0.375], dtype=dtype)) == 0.375
    assert read(torch.tensor([[0.5]])) == 0.5
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(errors.WeightError, match="positive and finite"):
            read(torch.tensor(bad))
        with pytest.raises(errors.WeightError, match="v scale"):
            KVScales(1.0, bad)
    for bad in (torch.ones(2), torch.ones(0), torch.tensor(1)):
        with pytest.raises(errors.WeightError, match="one float"):
            read(bad)
