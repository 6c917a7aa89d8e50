"""Offsets and integer scales of wna16_linear, and the kernel of GGUF blocks, against float64."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch
from cpu_oracle import DTYPES, Layer, assert_close, linear, make_layer, quantize
from qcore.kernels import process_weights
from qcore.layers import GGUFLinearLayerConfig
from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.numerics.gguf_blocks import dequantize_blocks
from qcore.testing import make_layer as layer_of
from qcore.testing import random_tensors
from qcore_cpu.gguf import CPUGGUFInt8LinearKernel, CPUGGUFLinearKernel

ops = torch.ops.qcore_cpu
Tensor = torch.Tensor
ROWS = (0, 1, 2, 8, 33)


# -- the op --------------------------------------------------------------------------------------


def _by_lanes(values: Tensor) -> Tensor:
    N, G = values.shape
    lanes = torch.zeros(-(-N // 16), G, 16, dtype=values.dtype)
    for n in range(N):
        lanes[n // 16, :, n % 16] = values[n]
    return lanes


def _group_of(layer: Layer) -> Tensor:
    if layer.g_idx is not None:
        return layer.g_idx.long()
    return torch.arange(layer.K) // layer.group_size


def _plain_zero(layer: Layer) -> int:
    """What an offset takes a code's zero point to be, less what the layer's weight takes."""
    return 0 if layer.bits == 8 or layer.zero_point is not None else 1 << (layer.bits - 1)


# bits, group size, zero points, g_idx
LAYERS = (
    (2, 16, False, False),
    (4, 32, False, False),
    (4, 16, True, False),
    (4, 32, False, True),
    (5, 32, False, False),
    (5, 64, True, True),
    (6, 16, False, False),
    (6, 32, True, False),
    (8, 16, False, False),
    (8, 32, True, True),
)


@pytest.mark.parametrize(("bits", "group_size", "zero_points", "g_idx"), LAYERS)
@pytest.mark.parametrize("offset_dtype", DTYPES)
def test_offset(
    isa: str,
    bits: int,
    group_size: int,
    zero_points: bool,
    g_idx: bool,
    offset_dtype: torch.dtype,
) -> None:
    layer = make_layer(37, 256, bits, group_size, zero_points, g_idx)
    offset = (torch.rand(layer.scale.shape) * 0.2 - 0.1).to(offset_dtype)
    shift = _plain_zero(layer) * layer.scale.double() + offset.double()
    weight = layer.weight + shift[:, _group_of(layer)]
    for bias in (None, torch.randn(37)):
        for dtype in DTYPES:
            for M in ROWS:
                x = torch.randn(M, 256).to(dtype)
                out = ops.wna16_linear(x, *layer.arguments(bias), None, _by_lanes(offset))
                assert_close(out, x, weight, bias)


@pytest.mark.parametrize(("bits", "group_size", "zero_points", "g_idx"), LAYERS)
@pytest.mark.parametrize("with_offset", [False, True])
def test_integer_scales(
    isa: str, bits: int, group_size: int, zero_points: bool, g_idx: bool, with_offset: bool
) -> None:
    layer = make_layer(37, 512, bits, group_size, zero_points, g_idx)
    groups = 512 // group_size
    group_of = _group_of(layer)
    zero_based = layer.weight / layer.scale.double()[:, group_of]
    for supers in (groups, groups // 4, 1):
        span = torch.arange(groups) // (groups // supers)

        def draw(supers: int = supers, span: Tensor = span) -> tuple[Tensor, Tensor, Tensor]:
            integers = torch.randint(-128, 128, (37, groups)).to(torch.int8)
            halves = (torch.rand(37, supers) * 1e-3).to(torch.float16)
            values = integers.double() * halves.double()[:, span]
            return _by_lanes(integers), _by_lanes(halves), values[:, group_of]

        scale, super_scale, scales = draw()
        weight = zero_based * scales
        offset = super_offset = None
        if with_offset:
            offset, super_offset, offsets = draw()
            weight = (zero_based + _plain_zero(layer)) * scales + offsets
        packed, _, *rest = layer.arguments()
        for dtype in DTYPES:
            for M in ROWS:
                x = torch.randn(M, 512).to(dtype)
                out = ops.wna16_linear(
                    x, packed, scale, *rest, None, offset, super_scale, super_offset
                )
                assert_close(out, x, weight)


def _op_arguments() -> tuple[list[object], dict[str, Tensor]]:
    layer = make_layer(20, 256, 4, 32)
    lanes = torch.zeros(2, 8, 16)
    packed, _, *rest = layer.arguments(torch.randn(20))
    more = {
        "offset": lanes.to(torch.int8),
        "super_scale": lanes[:, :1].half(),
        "super_offset": lanes[:, :1].half(),
    }
    return [torch.randn(3, 256), packed, lanes.to(torch.int8), *rest], more


def test_opcheck() -> None:
    arguments, more = _op_arguments()
    torch.library.opcheck(ops.wna16_linear.default, tuple(arguments), more)
    out = torch.empty(3, 20)
    torch.library.opcheck(ops.wna16_linear_out.default, (*arguments, out), more)
    ops.wna16_linear_out(*arguments, out, **more)
    assert torch.equal(ops.wna16_linear(*arguments, **more), out)


def test_errors() -> None:
    arguments, more = _op_arguments()
    half = more["super_scale"]
    for changes, message in (
        ({"offset": more["offset"].float()}, "offset is Float; it must be Char"),
        ({"offset": more["offset"][:1]}, r"offset has shape \[1, 8, 16\]; it must be \[2, 8, 16\]"),
        ({"super_scale": half.float()}, "super_scale is Float; it must be Half"),
        ({"super_scale": half[0]}, r"super_scale has shape \[1, 16\]; it must be \[2, 8, 16\]"),
        ({"super_scale": half.expand(2, 3, 16)}, r"super_scale has shape .* must be \[2, 8 or its"),
        ({"super_scale": half.expand(2, 16, 16)}, r"super_scale has shape \[2, 16, 16\]"),
        ({"super_scale": None}, "scale is Char; allowed"),
        ({"super_offset": None}, "offset is Char; allowed"),
        ({"super_offset": half.repeat(1, 2, 1)}, "super_offset has shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.wna16_linear(*arguments, **{**more, **changes})


# -- blocks, from ggml's definitions -------------------------------------------------------------


def _half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def _q4_0(block: bytes) -> list[float]:
    codes = [b & 15 for b in block[2:]] + [b >> 4 for b in block[2:]]
    return [_half(block, 0) * (code - 8) for code in codes]


def _q8_0(block: bytes) -> list[float]:
    return [_half(block, 0) * code for code in struct.unpack_from("32b", block, 2)]


def _q4_k(block: bytes) -> list[float]:
    d, least, packed = _half(block, 0), _half(block, 2), block[4:16]
    values = []
    for j in range(8):
        if j < 4:
            scale, minimum = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4)
            minimum = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)
        for byte in block[16 + j // 2 * 32 : 48 + j // 2 * 32]:
            code = byte >> 4 if j % 2 else byte & 15
            values.append(d * scale * code - least * minimum)
    return values


def _q6_k(block: bytes) -> list[float]:
    d, scales = _half(block, 208), struct.unpack_from("16b", block, 192)
    values = []
    for i in range(256):
        part, place = divmod(i, 128)
        quarter, column = divmod(place, 32)
        low = block[part * 64 + quarter % 2 * 32 + column] >> (quarter // 2 * 4) & 15
        high = block[128 + part * 32 + column] >> (quarter * 2) & 3
        values.append(d * scales[i // 16] * ((low | high << 4) - 32))
    return values


DEFINITIONS: dict[str, Callable[[bytes], list[float]]] = {
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}


def _weight(rows: Tensor, qtype: str) -> Tensor:
    if qtype not in DEFINITIONS:
        return dequantize_blocks(rows, qtype, torch.float64)
    size = GGUF_BLOCK_TYPES[qtype].type_size
    values = []
    for row in rows.numpy():
        data = row.tobytes()
        blocks = (data[at : at + size] for at in range(0, len(data), size))
        values.append([value for block in blocks for value in DEFINITIONS[qtype](block)])
    return torch.tensor(values, dtype=torch.float64)


# -- the kernel ----------------------------------------------------------------------------------


def _layer(
    config: GGUFLinearLayerConfig, kernel_class: type[CPUGGUFLinearKernel] = CPUGGUFLinearKernel
) -> tuple[CPUGGUFLinearKernel, torch.nn.Module, Tensor]:
    tensors = random_tensors(config)
    weight = _weight(tensors["weight"], config.qtype)
    kernel, layer = kernel_class(config), layer_of(config, tensors)
    process_weights(kernel, layer)
    return kernel, layer, weight


@pytest.mark.parametrize("qtype", GGUF_BLOCK_TYPES)
def test_kernel(isa: str, qtype: str) -> None:
    kernel, layer, weight = _layer(GGUFLinearLayerConfig((21, 512), qtype))
    for bias in (None, torch.randn(21)):
        for dtype in DTYPES:
            for M in ROWS:
                x = torch.randn(M, 512).to(dtype)
                assert_close(kernel.apply_weights(layer, x, bias), x, weight, bias)


# Of a type's weights, so many share a scale.
GROUP_SIZES = {qtype: 16 if qtype in ("Q2_K", "Q3_K", "Q6_K") else 32 for qtype in GGUF_BLOCK_TYPES}


def _rounded(x: Tensor, qtype: str) -> Tensor:
    """The activations that the kernel with int8 is to multiply."""
    size = GROUP_SIZES[qtype]
    codes, scale, _ = quantize(x.reshape(len(x), 512 // size, size), True)
    return (codes.double() * scale.double()).reshape(len(x), 512)


@pytest.mark.parametrize("qtype", GGUF_BLOCK_TYPES)
def test_int8_kernel(isa: str, qtype: str) -> None:
    config = GGUFLinearLayerConfig((85, 512), qtype)
    kernel, layer, weight = _layer(config, CPUGGUFInt8LinearKernel)
    for bias in (None, torch.randn(85)):
        for dtype in DTYPES:
            for M in ROWS:
                x = torch.randn(M, 512).to(dtype)
                out = kernel.apply_weights(layer, x, bias)
                assert out.dtype == dtype
                assert_close(out, _rounded(x, qtype), weight, bias)


def test_error_of_int8_is_that_of_the_rounding() -> None:
    for qtype in ("Q4_0", "Q8_0", "Q4_K", "Q6_K"):
        config = GGUFLinearLayerConfig((256, 512), qtype)
        kernel, layer, weight = _layer(config, CPUGGUFInt8LinearKernel)
        x = torch.randn(16, 512)
        exact = linear(x, weight)
        error = (kernel.apply_weights(layer, x) - exact).norm() / exact.norm()
        assert 0.002 < error < 0.006, (qtype, error)


@pytest.mark.parametrize("kernel_class", [CPUGGUFLinearKernel, CPUGGUFInt8LinearKernel])
@pytest.mark.parametrize("qtype", ["Q2_K", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q4_1"])
def test_row_does_not_depend_on_batch_or_threads(
    isa: str, qtype: str, kernel_class: type[CPUGGUFLinearKernel]
) -> None:
    kernel, layer, _ = _layer(GGUFLinearLayerConfig((150, 512), qtype), kernel_class)
    for dtype in DTYPES:
        x = torch.randn(270, 512).to(dtype)
        whole = kernel.apply_weights(layer, x)
        torch.set_num_threads(1)
        assert torch.equal(kernel.apply_weights(layer, x), whole)
        torch.set_num_threads(2)
        for first, last in ((0, 1), (269, 270), (5, 7), (3, 8), (100, 117), (1, 257)):
            part = kernel.apply_weights(layer, x[first:last])
            assert torch.equal(part, whole[first:last]), (first, last)


# Bits of a weight as packed, where N is a multiple of 16; README.md has the same table.
PACKED_BITS = {
    "Q2_K": 3.125,
    "Q3_K": 4.5625,
    "Q4_0": 4.5,
    "Q4_1": 5.0,
    "Q4_K": 4.625,
    "Q5_0": 5.5,
    "Q5_1": 6.0,
    "Q5_K": 5.625,
    "Q6_K": 6.5625,
    "Q8_0": 8.5,
    "IQ4_NL": 8.5,
    "IQ4_XS": 8.3125,
}


def test_memory() -> None:
    assert set(PACKED_BITS) == set(GGUF_BLOCK_TYPES)
    for qtype, bits in PACKED_BITS.items():
        _, layer, _ = _layer(GGUFLinearLayerConfig((32, 512), qtype))
        tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        del tensors["weight_chunks"]  # 8 bytes for a group of the whole layer
        held = sum(t.numel() * t.element_size() for t in tensors.values())
        assert held * 8 / (32 * 512) == bits, qtype


def test_weights_loaded_anew_have_no_offset_any_more() -> None:
    """What the first packing left in the layer must not be used by the second."""
    _, layer, _ = _layer(GGUFLinearLayerConfig((20, 256), "Q4_K"))
    config = GGUFLinearLayerConfig((20, 256), "Q4_0")
    tensors = random_tensors(config)
    layer.weight = torch.nn.Parameter(tensors["weight"], requires_grad=False)
    kernel = CPUGGUFLinearKernel(config)
    process_weights(kernel, layer)
    x = torch.randn(3, 256)
    assert_close(kernel.apply_weights(layer, x), x, _weight(tensors["weight"], "Q4_0"))


def test_halves_that_are_not_finite_show() -> None:
    for qtype in ("Q4_0", "Q4_K", "Q6_K"):
        config = GGUFLinearLayerConfig((20, 256), qtype)
        tensors = random_tensors(config)
        at = config.block_type.halves[0]
        nan = torch.tensor([float("nan")], dtype=torch.float16).view(torch.uint8)
        tensors["weight"][3, at : at + 2] = nan
        kernel, layer = CPUGGUFLinearKernel(config), layer_of(config, tensors)
        process_weights(kernel, layer)
        finite = kernel.apply_weights(layer, torch.randn(2, 256)).isfinite()
        assert not bool(finite[:, 3].any())
        assert bool(finite[:, [n for n in range(20) if n != 3]].all())
