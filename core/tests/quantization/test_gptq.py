"""GPTQ's tensors, decoded code by code from the format's definition."""

from __future__ import annotations

import pytest
import torch
from qcore import errors
from qcore.facts.scalar_type import scalar_types
from qcore.layers.params import check_params
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantization.gptq import GPTQConfig, GPTQScheme

K, N = 64, 32
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def signed(word):
    return word - (1 << 32) if word >= 1 << 31 else word


def code(words, row, column, bits, along):
    """One code of a packed matrix."""
    factor = 32 // bits
    index = row if along == 0 else column
    word = words[row // factor, column] if along == 0 else words[row, column // factor]
    return (int(word) >> (bits * (index % factor))) & ((1 << bits) - 1)


def random_layer(bits, group, seed=0, zeros=None, act_order=False):
    g = torch.Generator().manual_seed(seed)
    G = 1 if group == -1 else -(-K // group)
    pack = 32 // bits

    def words(*shape):
        return torch.randint(-(2**31), 2**31, shape, generator=g).to(torch.int32)

    size = K if group == -1 else group
    g_idx = torch.arange(K) // size
    if act_order:
        g_idx = g_idx[torch.randperm(K, generator=g)]
    if zeros is None:
        qzeros = words(G, N // pack)
    else:
        word = sum(zeros << (bits * i) for i in range(pack))
        qzeros = torch.full((G, N // pack), signed(word), dtype=torch.int32)
    return {
        "qweight": words(K // pack, N),
        "qzeros": qzeros,
        "scales": torch.rand(G, N, generator=g).half(),
        "g_idx": g_idx.to(torch.int32),
    }


def expected_weight(tensors, bits, v2):
    out = torch.empty(N, K, dtype=torch.float64)
    words = tensors["qzeros"]
    zeros = words if v2 else (words + ONES[bits]).to(torch.int32)
    for n in range(N):
        for k in range(K):
            g = int(tensors["g_idx"][k])
            q = code(tensors["qweight"], k, n, bits, 0)
            z = code(zeros, g, n, bits, 1)
            out[n, k] = (q - z) * tensors["scales"][g, n].double()
    return out


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, -1, 128])
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_canonical_weight(bits, group, v2, act_order):
    scheme = GPTQScheme(bits, group, sym=False, desc_act=act_order, v2=v2)
    tensors = random_layer(bits, group, act_order=act_order)
    check_params(scheme.checkpoint_tensors(K, N), tensors, "layer")
    before = {name: t.clone() for name, t in tensors.items()}
    layer = scheme.canonicalize(tensors, K, N, torch.float32)
    check_params(layer.config.params(), layer.tensors, "layer")
    assert layer.config.weight_type == scalar_types.by_name(f"uint{bits}")
    assert layer.config.zero_points
    assert layer.config.has_g_idx == (act_order and group == 16)
    assert layer.config.group_size == (16 if group == 16 else -1)
    assert layer.config == scheme.layer_config(K, N, torch.float32)
    got = dequantize_weight(layer.config, layer.tensors, torch.float64)
    assert torch.equal(got, expected_weight(tensors, bits, v2))
    assert all(torch.equal(before[name], t) for name, t in tensors.items())
    assert layer.tensors["weight_scale"].dtype == torch.float16


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("sym", [False, True])
def test_zeros_in_the_middle_become_the_types_bias(bits, v2, sym):
    middle = 1 << (bits - 1)
    tensors = random_layer(bits, 16, zeros=middle if v2 else middle - 1)
    scheme = GPTQScheme(bits, 16, sym=sym, desc_act=False, v2=v2)
    layer = scheme.canonicalize(tensors, K, N, torch.float32)
    assert layer.config.weight_type == scalar_types.by_name(f"uint{bits}b{middle}")
    assert not layer.config.zero_points
    assert "weight_zero_point" not in layer.tensors
    got = dequantize_weight(layer.config, layer.tensors, torch.float64)
    assert torch.equal(got, expected_weight(tensors, bits, v2))


@pytest.mark.parametrize(("stored", "v2"), [(8, False), (7, True)])
def test_symmetric_zeros_in_the_other_convention(stored, v2):
    """Only one reading makes them the middle code; vLLM's kernels do not look at them either."""
    scheme = GPTQScheme(4, 16, sym=True, desc_act=False, v2=v2)
    layer = scheme.canonicalize(random_layer(4, 16, zeros=stored), K, N, torch.float32)
    assert layer.config.weight_type == scalar_types.uint4b8


def test_zero_point_of_nought_borrows_from_its_neighbour():
    """As GPTQModel writes v1: the word less 0x11111111."""
    tensors = random_layer(4, -1)
    zeros = [0, 5, 0, 0, 15, 1, 8, 3]
    word = sum(z << (4 * i) for i, z in enumerate(zeros))
    tensors["qzeros"][:] = signed((word - 0x11111111) % (1 << 32))
    layer = GPTQScheme(4, -1, False, False).canonicalize(tensors, K, N, torch.float32)
    packed = layer.tensors["weight_zero_point"]
    assert [code(packed, n, 0, 4, 0) for n in range(N)] == zeros * (N // 8)


def test_trivial_g_idx_is_left_out_and_another_kept():
    scheme = GPTQScheme(4, 16, sym=False, desc_act=True)
    tensors = random_layer(4, 16)
    assert not scheme.canonicalize(tensors, K, N, torch.float32).config.has_g_idx
    tensors["g_idx"] = tensors["g_idx"].flip(0)
    layer = scheme.canonicalize(tensors, K, N, torch.float32)
    assert torch.equal(layer.tensors["weight_g_idx"], tensors["g_idx"])


def test_values_that_contradict_the_config():
    tensors = random_layer(4, 16)
    with pytest.raises(errors.WeightError, match=r"says symmetric.*all zero points are 8"):
        GPTQScheme(4, 16, True, False).canonicalize(tensors, K, N, torch.float32)
    for change in (-1, 1):
        bad = {**tensors, "g_idx": tensors["g_idx"] + change}
        with pytest.raises(errors.WeightError, match="the layer has the groups 0 to 3"):
            GPTQScheme(4, 16, False, True).canonicalize(bad, K, N, torch.float32)


def test_shapes_that_do_not_pack():
    with pytest.raises(errors.UnsupportedQuantizationError, match="N=30 is no multiple of 8"):
        GPTQScheme(4, 16, True, False).checkpoint_tensors(K, 30)
    assert GPTQScheme(4, 16, True, False).infer_shape({"qweight": (8, 32)}) == (64, 32)
    assert GPTQScheme(4, 16, True, False).infer_shape({"weight": (8, 32)}) is None


def bit_string(codes, bits):
    """Python integers, as int32 words."""
    whole = sum(code << (bits * i) for i, code in enumerate(codes))
    return [signed((whole >> (32 * i)) & 0xFFFFFFFF) for i in range(len(codes) * bits // 32)]


def test_three_bits_cross_words():
    """32 codes in three words; of zero points, AutoGPTQ takes one off each."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 8, (K, N), generator=g)
    zeros = torch.randint(1, 9, (4, N), generator=g) % 8
    columns = [bit_string(codes[:, n].tolist(), 3) for n in range(N)]
    tensors = {
        "qweight": torch.tensor(columns, dtype=torch.int32).t().contiguous(),
        "qzeros": torch.tensor(
            [bit_string(((row - 1) % 8).tolist(), 3) for row in zeros], dtype=torch.int32
        ),
        "scales": torch.rand(4, N, generator=g),
    }
    scheme = GPTQScheme(3, 16, sym=False, desc_act=False)
    check_params(scheme.checkpoint_tensors(K, N), tensors, "layer")
    assert scheme.infer_shape({"qweight": tuple(tensors["qweight"].shape)}) == (K, N)
    layer = scheme.canonicalize(tensors, K, N, torch.float32)
    check_params(layer.config.params(), layer.tensors, "layer")
    groups = torch.arange(K) // 16
    expected = (codes - zeros[groups]).double() * tensors["scales"].double()[groups]
    got = dequantize_weight(layer.config, layer.tensors, torch.float64)
    assert torch.equal(got, expected.t())
    with pytest.raises(errors.UnsupportedQuantizationError, match="packs 32 codes to 3 words"):
        scheme.checkpoint_tensors(K + 16, N)


def test_who_wrote_three_bits():
    """Before version 7, GPTQModel's constants for two of three words are the wrong way round."""
    by = {"meta": {"quantizer": ["gptqmodel:5.8.0"]}}
    config = {"bits": 3, "group_size": 16, "sym": False}
    assert GPTQConfig.from_config({**config, **by}).scheme.by_gptqmodel
    newer = {"meta": {"quantizer": ["gptqmodel:7.0.0"]}}
    tool = {"meta": {"quantizer": "autogptq"}}
    for other in ({}, tool, newer, {"meta": None}, {"bits": 4, **by}):
        assert not GPTQConfig.from_config({**config, **other}).scheme.by_gptqmodel
    words = [signed(w) for w in (0, 0x49249249 - 0x92492492 & 0xFFFFFFFF, 0x92492492 - 0x49249249)]
    tensors = {
        "qweight": torch.zeros(6, N, dtype=torch.int32),
        "qzeros": torch.tensor([words] * 4, dtype=torch.int32),
        "scales": torch.ones(4, N),
    }
    symmetric = GPTQScheme(3, 16, sym=True, desc_act=False)
    layer = symmetric.canonicalize(tensors, K, N, torch.float32)
    assert layer.config.weight_type == scalar_types.uint3b4
    assert not layer.config.zero_points


# -- the config --------------------------------------------------------------------------------

BASE = {"bits": 4, "group_size": 128}
LINEAR = torch.nn.Linear(1, 1, device="meta")


def test_defaults():
    config = GPTQConfig.from_config(BASE)
    assert config.scheme == GPTQScheme(4, 128, sym=True, desc_act=False, v2=False)
    assert config.get_quant_method(LINEAR, "model.layers.0.x") is config.scheme
    assert config.get_quant_method(LINEAR, "lm_head") is None
    assert config.get_quant_method(torch.nn.Embedding(1, 1), "model.embed") is None
    assert GPTQConfig.from_config({**BASE, "format": "gptq_v2"}).scheme.v2


def test_dynamic_rules():
    rules = {
        "-:.*gate": {},
        "+:.*up": {"bits": 8, "group_size": 32},
        ".*down": {"sym": False},
        ".*": {},
    }
    config = GPTQConfig.from_config({**BASE, "dynamic": rules})

    def scheme(name):
        return config.get_quant_method(LINEAR, name)

    assert scheme("m.gate_proj") is None
    anchored = GPTQConfig.from_config({**BASE, "dynamic": {"-:gate": {}}})
    assert anchored.get_quant_method(LINEAR, "m.gate_proj") is anchored.scheme
    assert scheme("m.up_proj") == GPTQScheme(8, 32, True, False)
    assert scheme("m.down_proj") == GPTQScheme(4, 128, False, False)
    assert scheme("m.other") == config.scheme


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bits": 5}, errors.UnsupportedQuantizationError, "bits is 5.*supported: 2, 3, 4, 8"),
        ({"bits": "4"}, errors.CheckpointError, "bits is '4'; it must be an integer"),
        ({"bits": True}, errors.CheckpointError, "bits is True"),
        ({"bits": None}, errors.CheckpointError, "bits is missing"),
        ({"group_size": 0}, errors.CheckpointError, "group_size is 0.*-1 for one group"),
        ({"group_size": 1.5}, errors.CheckpointError, "group_size is 1.5"),
        ({"sym": 1}, errors.CheckpointError, "sym is 1; it must be true or false"),
        ({"desc_act": "no"}, errors.CheckpointError, "desc_act is 'no'"),
        ({"checkpoint_format": "marlin"}, errors.UnsupportedQuantizationError, "gptq, gptq_v2"),
        ({"is_marlin_format": True}, errors.UnsupportedQuantizationError, "re-packed"),
        ({"pack_dtype": "int16"}, errors.UnsupportedQuantizationError, "pack_dtype is 'int16'"),
        ({"lm_head": "yes"}, errors.CheckpointError, "lm_head is 'yes'"),
        ({"dynamic": [1]}, errors.CheckpointError, "dynamic is"),
        ({"dynamic": {"(": {}}}, errors.CheckpointError, "no regular expression"),
        ({"dynamic": {".*": {"bits": 6}}}, errors.UnsupportedQuantizationError, "bits is 6"),
        ({"dynamic": {".*": 3}}, errors.CheckpointError, "must be a JSON object"),
    ],
)
def test_bad_config(change, error, text):
    with pytest.raises(error, match=text) as caught:
        GPTQConfig.from_config({**BASE, **change})
    assert type(caught.value) is error
