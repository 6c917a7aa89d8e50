"""wfp_linear and the packing of small floats against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cpu_oracle import DTYPES, assert_close
from qcore_cpu.wfp import Packed, by_lanes, pack_e2m1, pack_e4m3
from small_float_oracle import DECODED, decode, decode_e8m0, rounded

ops = torch.ops.qcore_cpu
Tensor = torch.Tensor

ROWS = (0, 1, 2, 3, 8, 9, 33)
TORCH_DTYPES = {"e4m3": torch.float8_e4m3fn, "e4m3fnuz": torch.float8_e4m3fnuz}
# The format, the group, whether all share a given scale.
ACTIVATIONS = (
    ("", 0, False),
    ("e4m3", -1, False),
    ("e4m3", 0, False),
    ("e4m3", 0, True),
    ("e4m3fnuz", -1, False),
    ("mxfp8", 0, False),
    ("mxfp4", 0, False),
    ("nvfp4", -1, False),
    ("nvfp4", 0, False),
    ("nvfp4", 0, True),
)


@dataclass
class Layer:
    """A random layer, and its weight in float64."""

    K: int
    N: int
    codes: str
    found: Packed
    weight: Tensor
    weight_scale: Tensor | None = None
    offset: Tensor | None = None
    table: Tensor | None = None

    def arguments(self, bias: Tensor | None = None) -> tuple[Any, ...]:
        """All of wfp_linear after x up to out_features."""
        return (*self.found, bias, self.codes, self.K, self.N)

    def options(self, activations: str, group: int, scale: Tensor | None) -> tuple[Any, ...]:
        """All after out_dtype but the bound."""
        weights = (self.weight_scale, self.offset, self.table)
        return (*weights, activations, group, scale)

    def run(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        activations: str = "",
        group: int = 0,
        scale: Tensor | None = None,
        bound: Tensor | None = None,
    ) -> Tensor:
        options = self.options(activations, group, scale)
        return ops.wfp_linear(x, *self.arguments(bias), out_dtype, *options, bound)


def spread(scale: Tensor, group_size: int, K: int) -> Tensor:
    return scale.double().repeat_interleave(group_size, 1)[:, :K]


def make_e4m3(
    N: int,
    K: int,
    group_size: int = -1,
    input_group: int = 0,
    kind: str = "e4m3",
    scale_dtype: torch.dtype = torch.float32,
) -> Layer:
    codes = torch.randint(0, 256, (N, K), dtype=torch.uint8)
    codes[decode(codes, kind).isnan()] = 3
    size = K if group_size == -1 else group_size
    scale = (torch.rand(N, -(-K // size)) * 0.02 + 0.001).to(scale_dtype)
    weight = decode(codes, kind) * spread(scale, size, K)
    found = pack_e4m3(codes.view(TORCH_DTYPES[kind]), scale, group_size, input_group)
    return Layer(K, N, "e4m3", found, weight)


def make_mxfp8(N: int, K: int) -> Layer:
    codes = torch.randint(0, 256, (N, K), dtype=torch.uint8)
    codes[decode(codes, "e4m3").isnan()] = 3
    scale = torch.randint(110, 130, (N, K // 32), dtype=torch.uint8)
    scale[0, 0], scale[-1, -1] = 1, 128
    found = pack_e4m3(codes.view(torch.float8_e4m3fn), scale, 32)
    assert found.scale.dtype == torch.uint8
    return Layer(K, N, "e4m3", found, decode(codes, "e4m3") * spread(decode_e8m0(scale), 32, K))


def make_e2m1(N: int, K: int, kind: str = "mxfp4", small: bool = True) -> Layer:
    """``small``: with scales of one byte."""
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    weight = codes[:, ::2] | (codes[:, 1::2] << 4)
    if kind == "mxfp4":
        scale = torch.randint(110, 130, (N, K // 32), dtype=torch.uint8)
        wide = decode_e8m0(scale)
        found = pack_e2m1(weight, scale if small else wide.bfloat16(), 32)
        return Layer(K, N, "e2m1", found, decode(codes, "e2m1") * spread(wide, 32, K))
    scale = torch.randint(0, 255, (N, K // 16), dtype=torch.uint8)
    scale[scale == 127] = 1
    wide, outer = decode(scale, "e4m3"), torch.rand(1) * 0.01 + 0.001
    scale = scale.view(torch.float8_e4m3fn) if small else wide.bfloat16()
    found = pack_e2m1(weight, scale, 16)
    values = decode(codes, "e2m1") * spread(wide, 16, K) * outer.double()
    return Layer(K, N, "e2m1", found, values, outer)


def make_lookup(N: int, K: int, bits: int, group_size: int, has_offset: bool) -> Layer:
    codes = torch.randint(0, 1 << bits, (N, K), dtype=torch.uint8)
    size = K if group_size == -1 else group_size
    scale = torch.rand(N, -(-K // size)) * 0.02 + 0.001
    table = torch.randn(1 << bits)
    weight = table.double()[codes.long()] * spread(scale, size, K)
    offset = None
    if has_offset:
        offset = torch.randn(scale.shape) * 0.01
        weight = weight + spread(offset, size, K)
        offset = by_lanes(offset)
    signed = codes.view(torch.int8) - (8 if bits == 4 else 0)
    packed, scale, _, perm, chunks = ops.wna16_pack(
        signed, scale, None, None, bits, 0, group_size, K
    )
    found = Packed(packed, scale, perm, chunks)
    return Layer(K, N, f"lookup{bits}", found, weight, None, offset, table)


LAYERS = {
    "e4m3 channels": lambda: make_e4m3(37, 300),
    "e4m3 ragged": lambda: make_e4m3(19, 77, scale_dtype=torch.bfloat16),
    "e4m3 one": lambda: make_e4m3(1, 1),
    "e4m3 g128": lambda: make_e4m3(64, 320, 128),
    "e4m3 g7": lambda: make_e4m3(16, 100, 7, scale_dtype=torch.float16),
    "e4m3fnuz": lambda: make_e4m3(33, 130, kind="e4m3fnuz"),
    "mxfp8": lambda: make_mxfp8(40, 96),
    "mxfp8 wide": lambda: make_e4m3(40, 96, 32, scale_dtype=torch.bfloat16),
    "mxfp4": lambda: make_e2m1(40, 96),
    "mxfp4 narrow": lambda: make_e2m1(1, 32),
    "nvfp4": lambda: make_e2m1(70, 272, "nvfp4"),
    "mxfp4 wide": lambda: make_e2m1(40, 96, small=False),
    "nvfp4 wide": lambda: make_e2m1(70, 272, "nvfp4", small=False),
    "nvfp4 narrow": lambda: make_e2m1(5, 16, "nvfp4"),
    "lookup4": lambda: make_lookup(37, 130, 4, 64, False),
    "lookup4 offset": lambda: make_lookup(20, 96, 4, 32, True),
    "lookup8": lambda: make_lookup(37, 130, 8, -1, False),
    "lookup8 offset": lambda: make_lookup(20, 99, 8, 7, True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_activations_as_they_are(isa: str, name: str) -> None:
    layer = LAYERS[name]()
    for dtype in DTYPES:
        for M in ROWS:
            x = torch.randn(M, layer.K).to(dtype)
            out = layer.run(x)
            assert out.dtype == dtype
            assert_close(out, x, layer.weight)


@pytest.mark.parametrize("kind", ["e4m3", "e4m3fnuz", "e2m1"])
def test_every_code(isa: str, kind: str) -> None:
    """A layer whose output n is the value of code n: NaN is NaN, and the rest is exact."""
    values = torch.tensor(DECODED[kind], dtype=torch.float64)
    K = len(values)
    codes = torch.diag(torch.arange(K, dtype=torch.uint8))  # output n has code n, and zeros
    if kind == "e2m1":
        found = pack_e2m1(codes[:, ::2] | (codes[:, 1::2] << 4), torch.ones(K, 1), 16)
    else:
        found = pack_e4m3(codes.view(TORCH_DTYPES[kind]), torch.ones(K, 1), -1)
    layer = Layer(K, K, "e2m1" if kind == "e2m1" else "e4m3", found, torch.diag(values))
    for dtype in DTYPES:
        for M in (1, 9):
            out = layer.run(torch.ones(M, K, dtype=dtype), None, torch.float32)
            assert torch.equal(out.isnan(), values.isnan().expand(M, -1))
            assert torch.equal(out.double().nan_to_num(0.0), values.nan_to_num(0.0).expand(M, -1))


@pytest.mark.parametrize("activations", ACTIVATIONS[1:], ids=str)
def test_rounded_activations(isa: str, activations: tuple[str, int, bool]) -> None:
    name, group, static = activations
    for layer in (make_e4m3(37, 96), make_e2m1(40, 96, "nvfp4"), make_e4m3(16, 320, 32)):
        for dtype in DTYPES:
            for M in (1, 2, 9, 33):
                x = (torch.randn(M, layer.K) * torch.rand(M, 1) * 4).to(dtype)
                x[0, :40] = 0
                scale = torch.tensor([0.004]) if static else None
                out = layer.run(x, None, torch.float32, name, group, scale)
                assert_close(out, rounded(x, name, group, scale), layer.weight)
                narrow = layer.run(x, None, None, name, group, scale)
                assert torch.equal(narrow, out.to(dtype))


@pytest.mark.parametrize("group", [128, 64, 32, 40, 7, 1000])
def test_activations_in_groups(isa: str, group: int) -> None:
    for kind in ("e4m3", "e4m3fnuz"):
        for group_size in (-1, 128, 64, 40, 24):
            layer = make_e4m3(20, 300, group_size, group)
            for M in (1, 5, 20):
                x = torch.randn(M, 300).to(DTYPES[M % 3])
                out = layer.run(x, None, torch.float32, kind, group)
                assert_close(out, rounded(x, kind, group, None), layer.weight)


def test_bound_of_a_computed_scale(isa: str) -> None:
    layer, bound = make_e4m3(20, 96), torch.tensor(1.5)
    for group in (-1, 0):
        x = torch.randn(6, 96) * torch.tensor([[0.1], [1], [2], [3], [4], [5]])
        out = layer.run(x, None, None, "e4m3", group, None, bound)
        assert_close(out, rounded(x, "e4m3", group, None, 1.5), layer.weight)


def ladder() -> Tensor:
    """Every finite bfloat16 from 2^-20 to 2^12, both signs: all ties of all formats are there."""
    bits = torch.arange((127 - 20) << 7, (127 + 12) << 7, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    return torch.cat((values, -values)).reshape(-1, 128)


@pytest.mark.parametrize("activations", ACTIVATIONS[1:], ids=str)
def test_ties_and_edges_of_rounding(isa: str, activations: tuple[str, int, bool]) -> None:
    """A layer that gives its input back: each rounded number is seen, and must be the very one."""
    name, group, static = activations
    K = 128
    codes = torch.diag(torch.full((K,), 0x38, dtype=torch.uint8))  # 1.0
    found = pack_e4m3(codes.view(torch.float8_e4m3fn), torch.ones(K, 1), -1)
    layer = Layer(K, K, "e4m3", found, torch.eye(K, dtype=torch.float64))
    x = ladder()
    x = torch.cat((x, x[:, torch.randperm(K)] * 2.0**-9))
    # Blocks whose largest magnitude is 1, 1 + 1/128, ...: where the scale goes up is seen.
    largest = 1 + torch.arange(K)[:, None] / K
    blocks = (torch.rand(K, K) * 2 - 1) * largest
    blocks[:, ::16] = largest
    x = torch.cat((x, blocks, torch.zeros(1, K)))
    scale = torch.tensor(0.75) if static else None
    for part in (x, x[:1], x[-1:]):
        out = layer.run(part, None, torch.float32, name, group, scale)
        expected = rounded(part, name, group, scale)
        assert bool(((out - expected).abs() <= expected.abs() * 2.0**-23).all())


@pytest.mark.parametrize("name", ["e4m3 channels", "nvfp4", "lookup4 offset"])
def test_bias_and_output_dtype(isa: str, name: str) -> None:
    layer = LAYERS[name]()
    for bias_dtype in DTYPES:
        bias = torch.randn(layer.N).to(bias_dtype)
        for out_dtype in (None, *DTYPES):
            for M in (1, 20):
                x = torch.randn(M, layer.K)
                out = layer.run(x, bias, out_dtype)
                assert out.dtype == (out_dtype or torch.float32)
                assert_close(out, x, layer.weight, bias)
    x = torch.randn(20, layer.K)
    out = layer.run(x, bias, None, "e4m3", -1)
    assert_close(out, rounded(x, "e4m3", -1, None), layer.weight, bias)


@pytest.mark.parametrize("activations", [("", 0), ("e4m3", -1), ("mxfp4", 0), ("nvfp4", -1)])
@pytest.mark.parametrize("name", ["e4m3 g128", "mxfp4", "nvfp4", "lookup4", "lookup8"])
def test_row_does_not_depend_on_batch_or_threads(
    isa: str, name: str, activations: tuple[str, int]
) -> None:
    layer = LAYERS[name]()
    for dtype in DTYPES[:2]:
        x = torch.randn(270, layer.K).to(dtype)
        torch.set_num_threads(2)
        whole = layer.run(x, None, None, *activations)
        torch.set_num_threads(1)
        assert torch.equal(layer.run(x, None, None, *activations), whole)
        for first, last in ((0, 1), (269, 270), (5, 7), (3, 8), (100, 108), (200, 217), (1, 257)):
            part = layer.run(x[first:last], None, None, *activations)
            assert torch.equal(part, whole[first:last]), (first, last)


def test_strided_and_shaped_input(isa: str) -> None:
    for layer in (make_e4m3(34, 48), make_e2m1(34, 48, "nvfp4")):
        wide = torch.randn(10, 4, 96)
        for x in (
            wide[0, :, :48],
            wide[:, 1, 48:],
            wide[..., ::2],
            wide[0, 0, ::2],
            torch.randn(48, 9).t(),
            torch.randn(1, 48).expand(6, 48),
            torch.randn(0, 3, 48),
        ):
            flat = x.reshape(-1, 48)
            for activations in ("", "e4m3"):
                out = layer.run(x, None, None, activations, -1)
                assert out.shape == (*x.shape[:-1], 34)
                expected = rounded(flat, activations, -1, None) if len(flat) else flat
                assert_close(out.reshape(-1, 34), expected, layer.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
def test_values_that_are_not_finite(
    isa: str, value: float, activations: tuple[str, int, bool]
) -> None:
    """They stay in their row (unless all rows share a scale), and are NaN where they must be."""
    name, group, static = activations
    scale = torch.tensor([0.01]) if static else None
    for layer in (make_e4m3(40, 64), make_e2m1(40, 64)):
        for dtype in DTYPES:
            x = torch.randn(12, 64).to(dtype)
            clean = layer.run(x, None, None, name, group, scale)
            x[4, 50] = value
            out = layer.run(x, None, None, name, group, scale)
            expected = rounded(x, name, group, scale) @ layer.weight.t()
            assert torch.equal(out[4].isnan(), expected[4].isnan())
            if group == 0 and not static and name in ("e4m3", "nvfp4"):
                continue
            kept = [row for row in range(12) if row != 4]
            assert torch.equal(out[kept], clean[kept])


def test_scales_that_are_not_finite(isa: str) -> None:
    weight = torch.randint(0, 256, (20, 48), dtype=torch.uint8)
    scale = torch.full((20, 3), 120, dtype=torch.uint8)
    scale[3, 1], scale[5, 0] = 255, 0
    wide = decode_e8m0(scale)
    found = pack_e2m1(weight, scale, 32)
    assert found.scale.dtype == torch.bfloat16
    codes = torch.stack((weight & 15, weight >> 4), 2).flatten(1)
    expected = decode(codes, "e2m1") * spread(wide, 32, 96)
    layer = Layer(96, 20, "e2m1", found, expected)
    for M in (1, 20):
        x = torch.randn(M, 96)
        out = layer.run(x)
        assert bool(out[:, 3].isnan().all())
        others = [n for n in range(20) if n != 3]
        assert_close(out[:, others], x, expected[others])


def test_out_variant_writes_nothing_beyond(isa: str) -> None:
    for layer in (make_e4m3(17, 64), make_e2m1(50, 64)):
        for M in (1, 3, 30):
            x = torch.randn(M, 64)
            memory = torch.full((M * layer.N + 64,), 7.0)
            out = memory[: M * layer.N].reshape(M, layer.N)
            options = layer.options("e4m3", -1, None)
            ops.wfp_linear_out(x, *layer.arguments(), out, *options)
            assert torch.equal(out, layer.run(x, None, None, "e4m3", -1))
            assert bool((memory[M * layer.N :] == 7).all())


def test_opcheck() -> None:
    for layer, activations in (
        (make_e4m3(20, 64), ("e4m3", 0, torch.tensor(0.1))),
        (make_e2m1(20, 64, "nvfp4"), ("nvfp4", -1, None)),
        (make_e2m1(20, 64), ("mxfp4", 0, None)),
        (make_lookup(20, 64, 4, 32, True), ("", 0, None)),
    ):
        for x in (torch.randn(3, 64), torch.randn(2, 3, 64, dtype=torch.bfloat16)):
            head, options = layer.arguments(torch.randn(20)), layer.options(*activations)
            torch.library.opcheck(ops.wfp_linear.default, (x, *head, torch.float16, *options))
            out = torch.empty(*x.shape[:-1], 20)
            torch.library.opcheck(ops.wfp_linear_out.default, (x, *head, out, *options))


def test_errors() -> None:
    layer = make_e4m3(20, 64)
    x = torch.randn(3, 64)
    table = torch.zeros(16)

    def run(**changes: Any) -> None:
        names = ("packed", "scale", "perm", "chunks", "bias", "codes", "in_features")
        head = dict(zip((*names, "out_features"), layer.arguments(), strict=True))
        ops.wfp_linear(**{"x": x, **head, **changes})

    run()
    group = {"activations": "e4m3", "group": 48}
    for changes, message in (
        ({"codes": "e5m2"}, "codes is 'e5m2'; allowed: e2m1, e4m3, lookup4, lookup8"),
        ({"codes": "e2m1"}, "packed has 16 words of 8 codes"),
        ({"codes": "lookup8"}, "table is not given"),
        ({"table": table}, "table is given"),
        ({"codes": "lookup8", "table": table}, r"table has shape \[16\]; it must be \[256\]"),
        ({"offset": layer.found.scale}, "offset is given"),
        ({"activations": "int8"}, "activations is 'int8'; allowed"),
        ({"activations": "e4m3", "group": -2}, "group is -2"),
        (group, "a chunk of the weights has inputs of several groups"),
        ({**group, "input_scale": torch.ones(1)}, "input_scale is given; group is then 0"),
        ({"input_scale": torch.ones(2)}, r"input_scale has shape \[2\]"),
        ({"input_bound": torch.ones(1).double()}, "input_bound is Double"),
        ({"weight_scale": torch.ones(3)}, r"weight_scale has shape \[3\]"),
        ({"x": x[:, :60]}, r"x has shape \[3, 60\]"),
        ({"x": x.to(torch.float8_e4m3fn)}, "x is Float8_e4m3fn; allowed"),
        ({"out_dtype": torch.float64}, "out_dtype is Double"),
        ({"scale": layer.found.scale[:1]}, "wfp_linear: scale has shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(**changes)
    with pytest.raises(RuntimeError, match="in groups with codes of e4m3 only"):
        make_e2m1(20, 64).run(x, None, None, "e4m3", 32)
