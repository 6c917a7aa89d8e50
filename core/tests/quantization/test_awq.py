"""AWQ's tensors, decoded code by code from the format's definition."""

from __future__ import annotations

import pytest
import torch
from qcore import errors
from qcore.facts.scalar_type import scalar_types
from qcore.layers.params import check_params
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantization.awq import AWQConfig, AWQScheme

NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)


def code(words, row, column):
    return (int(words[row, column // 8]) >> (4 * NIBBLE_OF_OUTPUT[column % 8])) & 15


def random_layer(K, N, group, qzeros=None):
    g = torch.Generator().manual_seed(0)
    G = 1 if group == -1 else -(-K // group)

    def words(*shape):
        return torch.randint(-(2**31), 2**31, shape, generator=g).to(torch.int32)

    return {
        "qweight": words(K, N // 8),
        "qzeros": words(G, N // 8) if qzeros is None else torch.full((G, N // 8), qzeros).int(),
        "scales": torch.rand(G, N, generator=g).half(),
    }


@pytest.mark.parametrize(("K", "N"), [(64, 32), (36, 8)])
@pytest.mark.parametrize("group", [16, -1])
@pytest.mark.parametrize("middle", [False, True])
def test_canonical_weight(K, N, group, middle):
    scheme = AWQScheme(group, zero_point=True)
    tensors = random_layer(K, N, group, -0x77777778 if middle else None)
    check_params(scheme.checkpoint_tensors(K, N), tensors, "layer")
    layer = scheme.canonicalize(tensors, K, N, torch.float16)
    check_params(layer.config.params(), layer.tensors, "layer")
    kind = scalar_types.uint4b8 if middle else scalar_types.uint4
    assert (layer.config.weight_type, layer.config.zero_points) == (kind, not middle)
    expected = torch.empty(N, K, dtype=torch.float64)
    for n in range(N):
        for k in range(K):
            g = 0 if group == -1 else k // group
            zero, scale = code(tensors["qzeros"], g, n), tensors["scales"][g, n].double()
            expected[n, k] = (code(tensors["qweight"], k, n) - zero) * scale
    assert torch.equal(dequantize_weight(layer.config, layer.tensors, torch.float64), expected)


def test_symmetric():
    scheme = AWQScheme(16, zero_point=False)
    tensors = random_layer(64, 32, 16)
    with pytest.raises(errors.WeightError, match="says symmetric"):
        scheme.canonicalize(tensors, 64, 32, torch.float32)
    del tensors["qzeros"]
    check_params(scheme.checkpoint_tensors(64, 32), tensors, "layer")
    layer = scheme.canonicalize(tensors, 64, 32, torch.float32)
    assert layer.config.weight_type == scalar_types.uint4b8


def test_shapes():
    with pytest.raises(errors.UnsupportedQuantizationError, match="N=12 is no multiple of 8"):
        AWQScheme(16, True).checkpoint_tensors(64, 12)
    assert AWQScheme(16, True).infer_shape({"qweight": (64, 4)}) == (64, 32)


# -- the config --------------------------------------------------------------------------------

LINEAR = torch.nn.Linear(1, 1, device="meta")


@pytest.mark.parametrize(
    "config",
    [
        {"bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
        {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"},
    ],
)
def test_config(config):
    assert AWQConfig.from_config(config).scheme == AWQScheme(64, True)


def test_modules_to_not_convert_are_whole_words():
    config = AWQConfig(AWQScheme(64, True), ["mlp.gate", "lm_head"])
    assert config.get_quant_method(LINEAR, "lm_head") is None
    assert config.get_quant_method(LINEAR, "model.layers.0.mlp.gate") is None
    assert config.get_quant_method(LINEAR, "model.layers.0.mlp.gate_proj") is config.scheme


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bits": 8}, errors.UnsupportedQuantizationError, "bits is 8.*supported: 4"),
        ({"version": "gemv"}, errors.UnsupportedQuantizationError, "'gemv'.*supported: gemm"),
        ({"group_size": -2}, errors.CheckpointError, "group_size is -2"),
        ({"zero_point": "x"}, errors.CheckpointError, "zero_point is 'x'"),
        ({"modules_to_not_convert": "lm_head"}, errors.CheckpointError, "a list of strings"),
    ],
)
def test_bad_config(change, error, text):
    with pytest.raises(error, match=text):
        AWQConfig.from_config({"bits": 4, "group_size": 64, **change})
