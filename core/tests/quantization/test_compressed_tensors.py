from __future__ import annotations

import pytest
import torch
from qcore import errors
from qcore.facts.quant_key import GroupShape
from qcore.facts.scalar_type import scalar_types
from qcore.layers.params import check_params
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantization.block_formats import Mxfp8Scheme
from qcore.quantization.compressed_schemes import (
    Int8Scheme,
    IntQuantizedScheme,
    PackQuantizedScheme,
)
from qcore.quantization.compressed_tensors import CompressedTensorsConfig
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.integer import IntegerWeights

LINEAR = torch.nn.Linear(1, 1, device="meta")
WEIGHTS = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": 128,
    "symmetric": True,
    "dynamic": False,
    "actorder": None,
    "observer": "minmax",
}
INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
W8 = {"num_bits": 8, "strategy": "channel", "group_size": None}


def config(weights=None, inputs=None, fmt="pack-quantized", **changes):
    group = {
        "targets": ["Linear"],
        "weights": {**WEIGHTS, **(weights or {})},
        "input_activations": inputs and {**INPUTS, **inputs},
        "output_activations": None,
    }
    return {"format": fmt, "config_groups": {"group_0": group}, "ignore": ["lm_head"], **changes}


def scheme(*args, **kwargs):
    parsed = CompressedTensorsConfig.from_config(config(*args, **kwargs))
    return parsed.get_quant_method(LINEAR, "model.layers.0.q_proj")


def test_schemes():
    assert scheme() == PackQuantizedScheme(IntegerWeights(4, 128, False, False))
    assert scheme({"symmetric": False}) == PackQuantizedScheme(IntegerWeights(4, 128, True, False))
    for order, has_g_idx in (("group", True), ("weight", False), ("static", False), (None, False)):
        assert scheme({"actorder": order}).weights.has_g_idx == has_g_idx
    assert scheme(W8) == PackQuantizedScheme(IntegerWeights(8, -1, False, False))
    assert scheme({"group_size": -1, "strategy": None}).weights.group_size == -1
    assert scheme({**W8, "strategy": None}).one_scale
    assert scheme(W8, fmt="int-quantized") == IntQuantizedScheme(IntegerWeights(8, -1, False))
    int8 = {"fmt": "int-quantized"}
    assert scheme(W8, {"num_bits": 8}, **int8) == Int8Scheme(True, False, True)
    assert scheme(W8, {"symmetric": False}, **int8) == Int8Scheme(True, False, False)
    assert scheme(W8, {"strategy": None}, **int8) == Int8Scheme(True, False, True)
    static = {"dynamic": False, "strategy": "tensor"}
    assert scheme({**W8, "strategy": "tensor"}, static, **int8) == Int8Scheme(False, True, True)


def test_a_groups_format_goes_before_the_checkpoints():
    parsed = config(fmt="mixed-precision")
    parsed["config_groups"]["group_0"]["format"] = "pack-quantized"
    CompressedTensorsConfig.from_config(parsed)


def test_targets_and_ignore():
    base = config()
    groups = {
        "a": {**base["config_groups"]["group_0"], "targets": ["Linear"]},
        "b": {**base["config_groups"]["group_0"], "targets": ["re:.*down_proj$"]},
        "c": {**base["config_groups"]["group_0"], "targets": ["model.layers.3.down_proj"]},
    }
    for bits, name in zip((4, 8, 2), "abc", strict=True):
        groups[name]["weights"] = {**WEIGHTS, "num_bits": bits}
    parsed = CompressedTensorsConfig.from_config(
        {**base, "config_groups": groups, "ignore": ["lm_head", "re:.*gate$", "Special"]}
    )

    class Special(torch.nn.Linear):
        pass

    def bits_of(name, layer=LINEAR):
        found = parsed.get_quant_method(layer, name)
        return found and found.weights.bits

    assert bits_of("model.layers.0.q_proj") == 4
    assert bits_of("model.layers.0.down_proj") == 8
    assert bits_of("model.layers.3.down_proj") == 2
    assert bits_of("lm_head") is None
    assert bits_of("model.lm_head") == 4
    assert bits_of("model.layers.0.gate") is None
    assert bits_of("model.layers.0.gate_proj") == 4
    assert bits_of("x", Special(1, 1, device="meta")) is None
    assert bits_of("x", torch.nn.Embedding(1, 1)) is None


def test_integers_with_quantized_activations():
    """int8 products need bytes with one scale a row; all else rounds in a mixed-precision layer."""
    for bits in (4, 8):
        weights = {**W8, "num_bits": bits}
        assert scheme(weights, INPUTS, fmt="int-quantized") == Int8Scheme(True, False, True, bits)
    assert scheme(W8, INPUTS, fmt="naive-quantized") == Int8Scheme(True, False, True)
    for weights, inputs, fmt in (
        ({}, {}, "int-quantized"),
        ({**W8, "symmetric": False}, {}, "int-quantized"),
        (W8, {}, "pack-quantized"),
        (W8, {"type": "float"}, "int-quantized"),
    ):
        made = scheme(weights, {**INPUTS, **inputs}, fmt=fmt).layer_config(128, 8, torch.bfloat16)
        assert made.act_type == (torch.float8_e4m3fn if inputs else torch.int8)
        assert made.out_type == torch.bfloat16


FP8 = {"type": "float", "num_bits": 8, "group_size": None, "strategy": "channel"}
NVFP4 = {"type": "float", "num_bits": 4, "group_size": 16, "strategy": "tensor_group"}
MXFP4 = {"type": "float", "num_bits": 4, "group_size": 32, "strategy": "group"}


def test_float_schemes():
    made = scheme({**FP8, "strategy": "block", "block_structure": "128x128"}, fmt="float-quantized")
    assert made == Float8Scheme("float-quantized", GroupShape(128, 128), None)
    mx = {**FP8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    for fmt in ("float-quantized", "naive-quantized", "mxfp8-quantized"):
        assert scheme(mx, fmt=fmt) == Mxfp8Scheme(fmt, None)


@pytest.mark.parametrize(
    ("fmt", "weights", "inputs", "text"),
    [
        ("float-quantized", {**FP8, "symmetric": False}, None, "weights: symmetric is False"),
        ("float-quantized", {**FP8, "num_bits": 4}, None, "weights: num_bits is 4.*supported: 8"),
        ("float-quantized", {**FP8, "strategy": "token"}, None, "strategy is 'token'.*tensor, ch"),
        ("float-quantized", FP8, INPUTS, "input_activations: type is 'int'"),
        (
            "float-quantized",
            FP8,
            {**FP8, "dynamic": True, "strategy": "group"},
            "is 'group'.*token",
        ),
        ("float-quantized", FP8, {**FP8, "dynamic": False}, "strategy is 'channel'.*for static"),
        (
            "float-quantized",
            {**FP8, "strategy": "block", "block_structure": [128, 128]},
            {**FP8, "dynamic": True, "strategy": "token"},
            "strategy is 'token'.*group, with weights in blocks",
        ),
        ("nvfp4-pack-quantized", {**NVFP4, "group_size": 32}, None, "group_size is 32.*16"),
        ("nvfp4-pack-quantized", {**NVFP4, "strategy": "group"}, None, "strategy is 'group'"),
        ("nvfp4-pack-quantized", NVFP4, {**NVFP4, "dynamic": True}, "dynamic is True.*'local'"),
        ("mxfp4-pack-quantized", {**MXFP4, "group_size": 16}, None, "group_size is 16.*32"),
        ("mxfp4-pack-quantized", MXFP4, {**MXFP4, "dynamic": False}, "dynamic is False"),
        ("mxfp8-quantized", MXFP4, None, "num_bits is 4"),
    ],
)
def test_bad_float_config(fmt, weights, inputs, text):
    with pytest.raises(errors.UnsupportedQuantizationError, match=text):
        scheme(weights, inputs, fmt=fmt)


@pytest.mark.parametrize("block", [None, [128], [128, 0], [128, True], "128", "128xall", {}])
def test_bad_block_structure(block):
    weights = {**FP8, "strategy": "block", "block_structure": block}
    with pytest.raises(errors.CheckpointError, match=r"block_structure is .*two positive integers"):
        scheme(weights, fmt="float-quantized")


UNSUPPORTED = errors.UnsupportedQuantizationError


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ({"fmt": "fp6-quantized"}, UNSUPPORTED, "'fp6-quantized'.*supported: pack-quantized"),
        ({"fmt": "marlin-24"}, UNSUPPORTED, "'marlin-24': 2:4 sparse.*one GPU kernel"),
        ({"fmt": "sparse-bitmask"}, UNSUPPORTED, "'sparse-bitmask': sparse weights"),
        ({"fmt": "float-quantized"}, UNSUPPORTED, "type is 'int'.*float, with float-quantized"),
        ({"fmt": "nvfp4-pack-quantized"}, UNSUPPORTED, "float, with nvfp4-pack-quantized"),
        ({"weights": {"type": "float"}}, UNSUPPORTED, "weights: type is 'float'"),
        ({"weights": {"type": "real"}}, UNSUPPORTED, "weights: type is 'real'"),
        ({"weights": {"type": "float", "num_bits": 6}}, UNSUPPORTED, "num_bits is 6.*: 4, 8"),
        ({"weights": {"num_bits": 9}}, UNSUPPORTED, "num_bits is 9"),
        ({"weights": {"num_bits": 4.0}}, errors.CheckpointError, "num_bits is 4.0"),
        ({"weights": {"group_size": "all"}}, errors.CheckpointError, "group_size is 'all'"),
        (
            {"weights": {"strategy": "block", "block_structure": [128, 128]}},
            UNSUPPORTED,
            "strategy is 'block'.*group, channel, tensor",
        ),
        ({"weights": {"actorder": "up"}}, UNSUPPORTED, "actorder is 'up'"),
        ({"weights": {"dynamic": True}}, UNSUPPORTED, "weights: dynamic is True"),
        ({"inputs": {"num_bits": 4}}, UNSUPPORTED, "input_activations: num_bits is 4"),
        ({"inputs": {"symmetric": False}}, UNSUPPORTED, "input_activations: symmetric is False"),
        ({"inputs": {"dynamic": False}}, UNSUPPORTED, "input_activations: dynamic is False"),
        (
            {"fmt": "int-quantized", "inputs": {"strategy": "tensor"}},
            UNSUPPORTED,
            "strategy is 'tensor'.*token, with such integer weights",
        ),
        (
            {"fmt": "int-quantized", "weights": W8, "inputs": {"strategy": "group"}},
            UNSUPPORTED,
            "strategy is 'group'.*token, for dynamic",
        ),
        ({"kv_cache_scheme": 8}, errors.CheckpointError, "kv_cache_scheme is 8"),
        ({"transform_config": {"a": 1}}, UNSUPPORTED, "transforms"),
        ({"sparsity_config": {"format": "sparse-24"}}, UNSUPPORTED, "sparse-24"),
        ({"config_groups": None}, errors.CheckpointError, "config_groups is None"),
        ({"config_groups": {"a": ["Linear"]}}, errors.CheckpointError, "config_groups: a is"),
        ({"ignore": ["re:("]}, errors.CheckpointError, "no regular expression"),
        ({"ignore": "lm_head"}, errors.CheckpointError, "a list of strings"),
    ],
)
def test_bad_config(args, error, text):
    with pytest.raises(error, match=text) as caught:
        CompressedTensorsConfig.from_config(config(**args))
    assert type(caught.value) is error


# -- tensors -----------------------------------------------------------------------------------


def pack(codes, bits):
    """[rows, columns] of Python integers, along the columns."""
    factor = 32 // bits
    words = []
    for row in codes:
        row = row + [0] * (-len(row) % factor)
        values = [
            sum(row[start + i] << (bits * i) for i in range(factor))
            for start in range(0, len(row), factor)
        ]
        words.append([v - (1 << 32) if v >= 1 << 31 else v for v in values])
    return torch.tensor(words, dtype=torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("K", "N"), [(64, 24), (36, 10)])
def test_pack_quantized(bits, symmetric, K, N):
    g = torch.Generator().manual_seed(bits)
    half, G = 1 << (bits - 1), -(-K // 16)
    values = torch.randint(-half, half, (N, K), generator=g)
    zeros = torch.zeros(N, G).long() if symmetric else torch.randint(-half, half, (N, G))
    scale = torch.rand(N, G, generator=g).bfloat16()
    tensors = {
        "weight_packed": pack((values + half).tolist(), bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([N, K]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack((zeros + half).t().tolist(), bits).t().contiguous()
    kind = PackQuantizedScheme(IntegerWeights(bits, 16, not symmetric))
    check_params(kind.checkpoint_tensors(K, N), tensors, "layer")
    layer = kind.canonicalize(tensors, K, N, torch.float32)
    check_params(layer.config.params(), layer.tensors, "layer")
    assert layer.config == kind.layer_config(K, N, torch.float32)
    groups = torch.arange(K) // 16
    expected = (values - zeros[:, groups]).double() * scale.double()[:, groups]
    assert torch.equal(dequantize_weight(layer.config, layer.tensors, torch.float64), expected)


def test_pack_quantized_details():
    kind = PackQuantizedScheme(IntegerWeights(4, 16, False, has_g_idx=True))
    tensors = {
        "weight_packed": torch.zeros(8, 8, dtype=torch.int32),
        "weight_scale": torch.ones(8, 4),
        "weight_g_idx": torch.full((64,), -1, dtype=torch.int32),
    }
    assert not kind.canonicalize(tensors, 64, 8, torch.float32).config.has_g_idx
    tensors["weight_shape"] = torch.tensor([8, 63])
    with pytest.raises(errors.WeightError, match=r"weight_shape says \[8, 63\]"):
        kind.canonicalize(tensors, 64, 8, torch.float32)
    assert kind.infer_shape({"weight_packed": (8, 8)}) == (64, 8)
    one = PackQuantizedScheme(IntegerWeights(4, -1, False), one_scale=True)
    tensors = {"weight_packed": tensors["weight_packed"], "weight_scale": torch.tensor([2.0])}
    check_params(one.checkpoint_tensors(64, 8), tensors, "layer")
    layer = one.canonicalize(tensors, 64, 8, torch.float32)
    assert torch.equal(dequantize_weight(layer.config, layer.tensors), torch.full((8, 64), -16.0))


@pytest.mark.parametrize("symmetric", [False, True])
def test_int_quantized_weight_only(symmetric):
    g = torch.Generator().manual_seed(0)
    values = torch.randint(-128, 128, (8, 64), generator=g)
    zeros = torch.randint(-128, 128, (8, 4), generator=g)
    scale = torch.rand(8, 4, generator=g)
    tensors = {"weight": values.to(torch.int8), "weight_scale": scale}
    if not symmetric:
        tensors["weight_zero_point"] = zeros.to(torch.int8)
    kind = IntQuantizedScheme(IntegerWeights(8, 16, not symmetric))
    check_params(kind.checkpoint_tensors(64, 8), tensors, "layer")
    layer = kind.canonicalize(tensors, 64, 8, torch.float32)
    groups = torch.arange(64) // 16
    offset = 0 if symmetric else zeros[:, groups]
    expected = (values - offset).double() * scale.double()[:, groups]
    assert torch.equal(dequantize_weight(layer.config, layer.tensors, torch.float64), expected)
    four = IntQuantizedScheme(IntegerWeights(4, 16, not symmetric))
    with pytest.raises(errors.WeightError, match="codes of 4 bits go from -8 to 7"):
        four.canonicalize(tensors, 64, 8, torch.float32)


def test_int8():
    kind = Int8Scheme(per_channel=True, static=True, symmetric=False)
    tensors = {
        "weight": torch.ones(8, 64, dtype=torch.int8),
        "weight_scale": torch.ones(8).bfloat16(),
        "input_scale": torch.tensor([0.1]).bfloat16(),
        "input_zero_point": torch.tensor([-3], dtype=torch.int8),
    }
    check_params(kind.checkpoint_tensors(64, 8), tensors, "layer")
    layer = kind.canonicalize(tensors, 64, 8, torch.bfloat16)
    check_params(layer.config.params(), layer.tensors, "layer")
    assert layer.tensors["input_scale"].dtype == torch.float32
    assert layer.tensors["input_zero_point"].tolist() == [-3]
    assert layer.tensors["weight_scale"].dtype == torch.bfloat16
    with pytest.raises(errors.WeightError, match="input_zero_point is not zero"):
        Int8Scheme(True, True, True).canonicalize(tensors, 64, 8, torch.bfloat16)
    for value, fine in ((0, True), (1, False)):
        tensors["weight_zero_point"] = torch.full((8, 1), value, dtype=torch.int8)
        check_params(kind.checkpoint_tensors(64, 8), tensors, "layer")
        if fine:
            again = kind.canonicalize(tensors, 64, 8, torch.bfloat16)
            assert again.tensors.keys() == layer.tensors.keys()
        else:
            with pytest.raises(errors.WeightError, match="weight_zero_point is not zero"):
                kind.canonicalize(tensors, 64, 8, torch.bfloat16)
    assert kind.infer_shape({"weight": (8, 64)}) is None
    assert kind.infer_shape({"weight": (8, 64), "weight_scale": (8, 1)}) == (64, 8)


def test_int4_of_uint8_types_reaches_the_biased_type():
    assert scheme().layer_config(64, 8, torch.float16).weight_type == scalar_types.uint4b8
    assert scheme({"symmetric": False}).layer_config(64, 8, torch.float16).zero_points
