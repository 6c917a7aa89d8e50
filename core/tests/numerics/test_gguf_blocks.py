"""Every block type against the `gguf` package's own dequantizers, bit for bit."""

import pytest
import torch
from qcore.layers.gguf import GGUF_BLOCK_TYPES, GGUFLinearLayerConfig
from qcore.numerics.gguf_blocks import decode_blocks, dequantize_blocks
from qcore.testing import random_tensors

gguf = pytest.importorskip("gguf", reason="the oracle of these tests")
np = pytest.importorskip("numpy")

EVERY = pytest.mark.parametrize("qtype", GGUF_BLOCK_TYPES)


def oracle(rows, qtype):
    kind = gguf.GGMLQuantizationType[qtype]
    return torch.from_numpy(gguf.quants.dequantize(rows.numpy(), kind))


def random_rows(qtype, N=33, K=1536, seed=0):
    return random_tensors(GGUFLinearLayerConfig((N, K), qtype), seed)["weight"]


@EVERY
def test_sizes_and_numbers(qtype):
    kind = GGUF_BLOCK_TYPES[qtype]
    theirs = gguf.GGMLQuantizationType[qtype]
    assert kind.number == theirs.value
    assert (kind.block_size, kind.type_size) == gguf.GGML_QUANT_SIZES[theirs]


@EVERY
def test_random_blocks(qtype):
    rows = random_rows(qtype)
    values = dequantize_blocks(rows, qtype)
    assert values.shape == (33, 1536)
    assert values.dtype == torch.float32
    assert torch.equal(values, oracle(rows, qtype))


@EVERY
def test_any_bytes(qtype):
    """Whatever the halves are: negative, subnormal, infinite, NaN."""
    random = torch.Generator().manual_seed(1)
    size = GGUF_BLOCK_TYPES[qtype].type_size
    rows = torch.randint(0, 256, (512, 4 * size), generator=random).to(torch.uint8)
    with np.errstate(all="ignore"):
        expected = oracle(rows, qtype)
    got = dequantize_blocks(rows, qtype)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@EVERY
def test_the_float64_value_is_the_exact_one(qtype):
    rows = random_rows(qtype, seed=2)
    exact = dequantize_blocks(rows, qtype, torch.float64)
    assert torch.equal(exact.float(), dequantize_blocks(rows, qtype))


@EVERY
def test_magnitudes_bound_the_values(qtype):
    rows = random_rows(qtype, seed=3)
    parts = decode_blocks(rows, qtype, torch.float64)
    assert (parts.values().abs() <= parts.magnitudes() * (1 + 1e-12)).all()


@pytest.mark.parametrize("qtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_by_the_gguf_package(qtype):
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(4)) * 0.02
    kind = gguf.GGMLQuantizationType[qtype]
    rows = torch.from_numpy(gguf.quants.quantize(weight.numpy(), kind))
    values = dequantize_blocks(rows, qtype)
    assert torch.equal(values, oracle(rows, qtype))
    allowed = {"Q4": 0.15, "Q5": 0.07, "Q8": 0.01}[qtype[:2]]
    assert (values - weight).norm() < allowed * weight.norm()


def test_leading_dimensions_are_kept():
    rows = random_rows("Q4_K", N=6)
    values = dequantize_blocks(rows.reshape(2, 3, -1), "Q4_K")
    assert values.shape == (2, 3, 1536)
    assert torch.equal(values.flatten(0, 1), dequantize_blocks(rows, "Q4_K"))


def test_no_rows():
    assert dequantize_blocks(torch.empty(0, 288, dtype=torch.uint8), "Q4_K").shape == (0, 512)
