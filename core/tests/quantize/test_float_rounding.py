"""Rounding to the small floats against tables and loops in numpy, float64."""

import numpy as np
import pytest
import torch
from qcore.numerics.small_floats import decode_e2m1, encode_e2m1, round_e2m1
from qcore.quantize.float_rounding import NVFP4_RATIOS
from qcore.quantize.rounding import round_weight
from qcore.quantize.scheme import QuantizeScheme

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def e4m3_table():
    """The value of every magnitude's code: 1 sign, 4 exponent bits (bias 7), 3 of mantissa."""
    values = []
    for code in range(127):  # 127 is NaN
        exponent, mantissa = code >> 3, code & 7
        values.append(
            mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        )
    return np.array(values)


E4M3 = e4m3_table()


def nearest(values, table):
    """Codes of the nearest magnitudes, ties to the even code, the sign in the bit above."""
    magnitude = np.abs(values)[..., None]
    distance = np.abs(magnitude - table)
    best = distance.min(-1, keepdims=True)
    tied = distance == best
    even = np.arange(len(table)) % 2 == 0
    code = np.where(
        (tied & even).any(-1), (tied & even).argmax(-1), tied.argmax(-1)
    )  # two neighbours tie at most, and one of them is even
    bits = {8: 3, 127: 7}[len(table)]
    return code | (np.signbit(values).astype(int) << bits)


def weights(shape=(20, 192), dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(shape, generator=generator)
    weight *= torch.rand((shape[0], 1), generator=generator)
    weight[3] = 0.0
    weight[5, :32] *= 1e-4
    return weight.to(dtype)


def bits(tensor):
    return tensor.view(torch.uint8).numpy().astype(int)


def float32(values):
    """What float32 arithmetic makes of it."""
    return np.float32(values).astype(np.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [("fp8", 1, 192), ("fp8-tensor", 140, 192), ("fp8-block", 128, 128)],
)
def test_fp8(text, rows, columns, dtype):
    weight = weights((140, 192), dtype)
    tensors = round_weight(weight, QuantizeScheme.parse(text)).tensors
    scale = tensors["weight_scale"]
    assert scale.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    w, s = weight.double().numpy(), scale.double().numpy().reshape(-(-140 // rows), -1)
    codes = bits(tensors["weight"])
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            part = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            amax = np.abs(w[part]).max()
            exact = float32(amax / 448) if amax else 1.0
            stored = torch.tensor(exact, dtype=torch.float32).to(scale.dtype).double().item()
            assert s[i, j] == stored
            scaled = np.clip(float32(w[part] / stored), -448, 448)
            np.testing.assert_array_equal(codes[part], nearest(scaled, E4M3))


@pytest.mark.parametrize(("text", "table", "emax"), [("mxfp8", E4M3, 8), ("mxfp4", E2M1, 2)])
def test_mx_without_a_search(text, table, emax):
    weight = weights()
    tensors = round_weight(weight, QuantizeScheme.parse(text), search=False).tensors
    blocks = weight.double().numpy().reshape(20, 6, 32)
    amax = np.abs(blocks).max(-1)
    exponent = np.floor(np.log2(np.where(amax > 0, amax, 1.0)))
    exponent += amax >= 1.75 * 2.0**exponent  # nothing saturates at 448; little at 6
    code = np.where(amax > 0, exponent - emax + 127, 0)
    np.testing.assert_array_equal(tensors["weight_scale"].numpy(), code)
    scaled = blocks / 2.0 ** (code - 127)[..., None]
    codes = nearest(np.clip(scaled, -table[-1], table[-1]), table).reshape(20, 192)
    if text == "mxfp8":
        np.testing.assert_array_equal(bits(tensors["weight"]), codes)
    else:
        packed = codes[:, ::2] | (codes[:, 1::2] << 4)
        np.testing.assert_array_equal(tensors["weight_packed"].numpy(), packed)


def nvfp4_back(tensors, shape):
    """Values from the bytes, in float64."""
    packed = tensors["weight_packed"].numpy().astype(int)
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(shape[0], -1, 16)
    values = np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7]
    scale = E4M3[bits(tensors["weight_scale"])] / float(tensors["weight_global_scale"])
    return (values * scale[..., None]).reshape(shape)


def test_nvfp4_without_a_search():
    weight = weights()
    tensors = round_weight(weight, QuantizeScheme.parse("nvfp4"), search=False).tensors
    blocks = weight.double().numpy().reshape(20, 12, 16)
    outer = float(tensors["weight_global_scale"])
    assert outer == pytest.approx(448 * 6 / np.abs(blocks).max(), rel=1e-7)
    ideal = np.abs(blocks).max(-1) / 6 * outer
    stored = E4M3[bits(tensors["weight_scale"])]
    # The nearest there is; the least that is not zero where that would be zero.
    expected = np.maximum(E4M3[nearest(np.clip(float32(ideal), 0, 448), E4M3)], 2.0**-9)
    np.testing.assert_array_equal(stored, expected)
    back = nvfp4_back(tensors, weight.shape).reshape(blocks.shape)
    step = stored[..., None] / outer
    # Half the widest step between codes, 2; and up to 1/16 of the scale's rounding beyond 6.
    assert (np.abs(back - blocks) <= step * (1.0 + 6 / 16) * (1 + 1e-6)).all()
    assert (back[3] == 0).all()


def test_the_search_for_nvfp4_takes_the_best_of_every_block():
    weight = weights()
    blocks = weight.double().numpy().reshape(-1, 16)
    outer = 448 * 6 / np.abs(blocks).max()
    least = np.full(len(blocks), np.inf)
    for ratio in NVFP4_RATIOS:
        cover = np.clip(np.abs(blocks).max(-1) / 6 * outer * ratio, 2.0**-9, 448)
        scale = E4M3[nearest(cover, E4M3)][:, None] / outer
        code = nearest(np.clip(blocks / scale, -6, 6), E2M1)
        back = np.where(code & 8, -1.0, 1.0) * E2M1[code & 7] * scale
        least = np.minimum(least, ((back - blocks) ** 2).sum(-1))
    expected = np.sqrt(least.sum() / (blocks**2).sum())
    rounded = round_weight(weight, QuantizeScheme.parse("nvfp4"))
    assert rounded.relative_error == pytest.approx(expected, rel=1e-4)
    back = nvfp4_back(rounded.tensors, weight.shape)
    true = np.linalg.norm(back - weight.double().numpy()) / np.linalg.norm(weight.double().numpy())
    assert rounded.relative_error == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4"])
def test_a_search_never_loses_more(text):
    scheme = QuantizeScheme.parse(text)
    plain, searched = (round_weight(weights(), scheme, search=s) for s in (False, True))
    assert searched.relative_error < plain.relative_error


@pytest.mark.parametrize("text", ["fp8", "fp8-tensor", "fp8-block", "mxfp8", "mxfp4", "nvfp4"])
def test_rows_beyond_one_chunk(monkeypatch, text):
    scheme = QuantizeScheme.parse(text)
    weight = weights((300, 192))
    whole = round_weight(weight, scheme)
    monkeypatch.setattr("qcore.quantize.rounding._CHUNK", 7 * 192)
    parts = round_weight(weight, scheme)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor.view(torch.uint8), parts.tensors[name].view(torch.uint8))


@pytest.mark.parametrize("text", ["fp8", "fp8-tensor", "fp8-block", "mxfp8", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(text, value):
    weight = weights()
    weight[3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        round_weight(weight, QuantizeScheme.parse(text))


@pytest.mark.parametrize("text", ["fp8", "fp8-tensor", "fp8-block", "mxfp8", "mxfp4", "nvfp4"])
def test_zeros_stay_zeros(text):
    rounded = round_weight(torch.zeros(4, 64, dtype=torch.bfloat16), QuantizeScheme.parse(text))
    assert rounded.relative_error == 0.0
    codes = rounded.tensors.get("weight", rounded.tensors.get("weight_packed"))
    assert not codes.view(torch.uint8).any()


def test_e2m1_values_are_those_of_the_codes():
    values = torch.cat((torch.linspace(-7, 7, 28001), torch.tensor([0.0, -0.0, 1e-30, 1e30])))
    assert torch.equal(round_e2m1(values), decode_e2m1(encode_e2m1(values)))
