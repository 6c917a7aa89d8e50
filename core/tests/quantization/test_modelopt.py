from __future__ import annotations

import pytest
import torch
from qcore import errors
from qcore.quantization.block_formats import Mxfp8Scheme, NvFp4Scheme
from qcore.quantization.modelopt import ModelOptConfig

LINEAR = torch.nn.Linear(1, 1, device="meta")
UNSUPPORTED = errors.UnsupportedQuantizationError


def read(**fields):
    return ModelOptConfig.from_config({"quant_method": "modelopt", **fields})


def test_both_files():
    """config.json is flat and says ``ignore``, hf_quant_config.json nests ``exclude_modules``."""
    nested = {"quant_algo": "nvfp4", "exclude_modules": ["lm_head"], "group_size": 16}
    for config in (
        read(quant_algo="NVFP4", ignore=["lm_head"]),
        ModelOptConfig.from_config({"producer": {"name": "modelopt"}, "quantization": nested}),
    ):
        assert isinstance(config.default, NvFp4Scheme)
        assert config.get_quant_method(LINEAR, "lm_head") is None
        assert config.notes() == ()


def test_patterns_of_excluded_layers():
    excluded = ["lm_head", "*.mlp.gate", "model.layers.1*", "model.visual"]
    config = read(quant_algo="MXFP8", exclude_modules=excluded)
    assert isinstance(config.default, Mxfp8Scheme)
    for name in ("lm_head", "m.0.mlp.gate", "model.layers.1.mlp.up_proj", "model.visual.a.b"):
        assert config.get_quant_method(LINEAR, name) is None
    for name in ("m.0.mlp.gate_proj", "model.layers.2.mlp.up_proj", "model.visuals"):
        assert config.get_quant_method(LINEAR, name) is config.default
    assert config.get_quant_method(torch.nn.Embedding(1, 1), "x") is None


def test_mixed_precision_names_layers():
    layers = {"a.b": {"quant_algo": "FP8"}, "a.c": {"quant_algo": "W4A16_NVFP4", "group_size": 16}}
    config = read(quant_algo="MIXED_PRECISION", quantized_layers=layers)
    assert "static tensor" in config.get_quant_method(LINEAR, "a.b").describe()
    assert not config.get_quant_method(LINEAR, "a.c").quantized_inputs
    assert config.get_quant_method(LINEAR, "a.d") is None


def test_kv_cache():
    assert "FP8" in read(quant_algo="FP8", kv_cache_quant_algo="FP8").notes()[0]
    assert "KV cache" in read(quant_algo="FP8", kv_cache_scheme={"num_bits": 8}).notes()[0]


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({}, errors.CheckpointError, "quant_algo is missing"),
        ({"quant_algo": 4}, errors.CheckpointError, "quant_algo is 4"),
        ({"quant_algo": "W4A16_AWQ"}, UNSUPPORTED, "'W4A16_AWQ'.*TensorRT-LLM.*supported: FP8"),
        ({"quant_algo": "NVFP4_AWQ"}, UNSUPPORTED, "'NVFP4_AWQ'.*scales inputs before"),
        ({"quant_algo": "W4A8_MXFP4_FP8"}, UNSUPPORTED, "'W4A8_MXFP4_FP8'.*one scale per tensor"),
        ({"quant_algo": "W4A8"}, UNSUPPORTED, "'W4A8' is not supported; sup"),
        ({"quant_algo": "NVFP4", "group_size": 32}, UNSUPPORTED, "group_size is 32.*16"),
        ({"quant_algo": "FP8", "ignore": "lm_head"}, errors.CheckpointError, "ignore is 'lm_head'"),
        ({"quant_algo": "MIXED_PRECISION"}, errors.CheckpointError, "quantized_layers is None"),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "X"}}},
            UNSUPPORTED,
            "quantized_layers: a: quant_algo 'X'",
        ),
        ({"quantization": []}, errors.CheckpointError, "quantization is \\[\\]"),
    ],
)
def test_bad_config(fields, error, text):
    with pytest.raises(error, match=text) as caught:
        read(**fields)
    assert type(caught.value) is error
