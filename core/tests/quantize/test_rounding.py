"""Rounding against a dequantization written here, from the description of the format alone."""

import pytest
import torch
from qcore.quantize.rounding import RATIOS, round_weight
from qcore.quantize.scheme import QuantizeScheme


def unpack(words, bits, size):
    """Codes along the last dimension, lowest bits first."""
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    codes = [(unsigned >> shift) & ((1 << bits) - 1) for shift in range(0, 32, bits)]
    return torch.stack(codes, -1).flatten(-2)[..., :size]


def dequantize(tensors, scheme, shape):
    N, K = shape
    scale = tensors["weight_scale"].double()
    spread = K // scale.shape[1]
    if scheme.weights == "int" and not scheme.packed:
        return tensors["weight"].double() * scale
    assert tensors["weight_shape"].tolist() == [N, K]
    codes = unpack(tensors["weight_packed"], scheme.bits, K).double()
    zero = torch.tensor(float(1 << (scheme.bits - 1)), dtype=torch.float64)
    if not scheme.symmetric:
        zero = unpack(tensors["weight_zero_point"].t(), scheme.bits, N).t().double()
        zero = zero.repeat_interleave(spread, 1)
    return (codes - zero) * scale.repeat_interleave(spread, 1)


SCHEMES = [
    "int4-g32",
    "int4-channel",
    "int4-asym-g32",
    "int4-asym-channel",
    "int2-g32",
    "int2-asym-g32",
    "int8-g32",
    "int8-asym-g32",
    "int8-channel",
    "int8",
]


def weights(shape=(37, 96), dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator) * torch.rand(
        (shape[0], 1), generator=generator
    )
    weight[2] += 3.0  # far from symmetric
    weight[5] = 0.0
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", SCHEMES)
def test_every_weight_is_off_by_half_a_step_at_most(text, dtype):
    scheme = QuantizeScheme.parse(text)
    weight = weights(dtype=dtype)
    rounded = round_weight(weight, scheme, search=False)
    back = dequantize(rounded.tensors, scheme, weight.shape)
    scale = rounded.tensors["weight_scale"]
    assert scale.dtype == dtype
    step = scale.double().repeat_interleave(weight.shape[1] // scale.shape[1], 1)
    # The scale is rounded to its dtype, which moves the outermost code by that much.
    slack = (1 << scheme.bits) * torch.finfo(dtype).eps
    worst = ((back - weight.double()).abs() / step).max()
    assert worst <= 0.5 + slack
    assert torch.equal(back[5], torch.zeros_like(back[5]))


@pytest.mark.parametrize("text", SCHEMES)
def test_the_search_never_loses_more_and_the_error_is_the_true_one(text):
    scheme = QuantizeScheme.parse(text)
    weight = weights()
    plain = round_weight(weight, scheme, search=False)
    searched = round_weight(weight, scheme)
    assert searched.relative_error <= plain.relative_error
    back = dequantize(searched.tensors, scheme, weight.shape)
    true = float((back - weight.double()).norm() / weight.double().norm())
    assert searched.relative_error == pytest.approx(true, rel=1e-4)


def test_the_search_takes_the_best_ratio_of_every_group():
    scheme = QuantizeScheme.parse("int4-g32")
    weight = weights(dtype=torch.float32)
    groups = weight.double().reshape(-1, 32)
    least = torch.full((len(groups),), float("inf"), dtype=torch.float64)
    for ratio in RATIOS:
        scale = groups.abs().amax(-1, keepdim=True) / 7.5 * ratio
        scale = torch.where(scale == 0, 1.0, scale)
        back = (groups / scale).round().clamp(-8, 7) * scale
        least = torch.minimum(least, (back - groups).square().sum(-1))
    expected = float((least.sum() / groups.square().sum()).sqrt())
    assert round_weight(weight, scheme).relative_error == pytest.approx(expected, rel=1e-5)


def test_symmetric_four_bits_by_hand():
    weight = torch.tensor([[7.5, -7.5, 0.4, 0.6, -1.0, 2.0, 3.0, -4.0]])
    tensors = round_weight(weight, QuantizeScheme.parse("int4-g8"), search=False).tensors
    assert tensors["weight_scale"].tolist() == [[1.0]]
    codes = [7 + 8, -8 + 8, 0 + 8, 1 + 8, -1 + 8, 2 + 8, 3 + 8, -4 + 8]
    word = sum(code << (4 * index) for index, code in enumerate(codes))
    assert tensors["weight_packed"].tolist() == [[word - (1 << 32) if word >= 1 << 31 else word]]


def test_asymmetric_four_bits_by_hand():
    weight = torch.tensor([[-1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 13.9, 14.0]])
    tensors = round_weight(weight, QuantizeScheme.parse("int4-asym-g8"), search=False).tensors
    assert tensors["weight_scale"].tolist() == [[1.0]]
    assert unpack(tensors["weight_packed"], 4, 8).tolist() == [[0, 1, 2, 3, 6, 11, 15, 15]]
    assert tensors["weight_zero_point"].tolist() == [[1]]


def test_rows_beyond_one_chunk(monkeypatch):
    scheme = QuantizeScheme.parse("int4-asym-g32")
    weight = weights((40, 96))
    whole = round_weight(weight, scheme)
    monkeypatch.setattr("qcore.quantize.rounding._CHUNK", 7 * 96)
    parts = round_weight(weight, scheme)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    weight = weights()
    weight[3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        round_weight(weight, QuantizeScheme.parse("int4-g32"))


def test_tiny_weights_do_not_lose_their_scale():
    weight = torch.full((4, 32), 1e-7, dtype=torch.float16)
    tensors = round_weight(weight, QuantizeScheme.parse("int4-g32")).tensors
    assert (tensors["weight_scale"] > 0).all()
