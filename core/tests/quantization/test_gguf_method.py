import pytest
import torch
from qcore import CheckpointError, ConfigError, UnsupportedQuantizationError
from qcore.layers import GGUFLinearLayerConfig
from qcore.quantization.embedding import QuantizedEmbedding, embedding_scale
from qcore.quantization.gguf import GGUFConfig, GGUFLinearScheme
from qcore.quantization.methods import get_quantization_config
from qcore.testing import random_tensors


def test_the_config_of_a_layer():
    config = GGUFLinearLayerConfig((64, 512), "Q4_K", torch.bfloat16)
    assert (config.in_features, config.out_features) == (512, 64)
    assert (config.block_size, config.type_size) == (256, 144)
    assert config.params()["weight"].shape == ((64, 288),)
    assert config.describe() == "gguf Q4_K weights, bfloat16 activations"
    assert hash(config) == hash(GGUFLinearLayerConfig((64, 512), "Q4_K", torch.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((64, 500), "Q4_K"), "K=500; it must be a multiple of the Q4_K block of 256"),
        (((64, 48), "Q8_0"), "K=48; it must be a multiple of the Q8_0 block of 32"),
        (((64, 512), "Q7_K"), "qtype is 'Q7_K'; allowed: Q4_0, "),
        (((64,), "Q4_K"), r"weight_shape is \(64,\)"),
        (((64, 512), "Q4_K", torch.int8), "input_dtype"),
    ],
)
def test_what_no_layer_is(arguments, text):
    with pytest.raises(ConfigError, match=text):
        GGUFLinearLayerConfig(*arguments)


def test_the_method():
    method = GGUFConfig({"a": "Q4_K", "b": "Q6_K", "c": "Q4_K"})
    linear = torch.nn.Linear(1, 1)
    assert method.get_quant_method(linear, "b") == GGUFLinearScheme("Q6_K")
    assert method.get_quant_method(linear, "d") is None
    assert method.describe() == "gguf: Q4_K, Q6_K"
    assert GGUFConfig.from_config({"types": {"a": "Q4_K"}}).types == {"a": "Q4_K"}
    for wrong in ({}, {"types": {"a": "Q7_K"}}, {"types": {"a": []}}, {"types": 1}):
        with pytest.raises(CheckpointError, match="described by their file"):
            GGUFConfig.from_config(wrong)
    with pytest.raises(UnsupportedQuantizationError, match=r"give the \.gguf file"):
        get_quantization_config("gguf")


def test_the_scheme():
    scheme = GGUFLinearScheme("Q6_K")
    assert scheme.infer_shape({"weight": (64, 420)}) == (512, 64)
    assert scheme.infer_shape({"weight": (64, 421)}) is None
    assert scheme.infer_shape({"bias": (64,)}) is None
    with pytest.raises(UnsupportedQuantizationError, match="100 inputs are no multiple"):
        scheme.checkpoint_tensors(100, 64)


def test_the_embedding():
    from qcore.numerics.gguf_blocks import dequantize_blocks

    rows = random_tensors(GGUFLinearLayerConfig((10, 512), "Q6_K"))["weight"]
    ids = torch.tensor([[3, 9], [0, 3]])
    embedding = QuantizedEmbedding(rows, "Q6_K", torch.float32, torch.tensor(2.0))
    expected = dequantize_blocks(rows, "Q6_K")
    assert torch.equal(embedding(ids), expected[ids] * 2)
    assert embedding(ids[:0]).shape == (0, 2, 512)
    assert QuantizedEmbedding(rows, "Q6_K", torch.bfloat16)(ids).dtype == torch.bfloat16
    assert str(embedding) == "QuantizedEmbedding(10, 512, Q6_K)"


def test_which_embeddings_it_can_stand_for():
    class Other(torch.nn.Embedding):
        pass

    assert embedding_scale(torch.nn.Embedding(4, 4)) == (True, None)
    assert embedding_scale(torch.nn.Embedding(4, 4, max_norm=1.0)) == (False, None)
    assert embedding_scale(Other(4, 4)) == (False, None)
    assert embedding_scale(torch.nn.Linear(4, 4)) == (False, None)
