"""wna16_pack and wna16_linear against float64."""

from __future__ import annotations

import pytest
import torch
from cpu_oracle import DTYPES, Layer, assert_close, make_layer, pack

ops = torch.ops.qcore_cpu

# N, K, group_size, zero points, g_idx
LAYERS = (
    (64, 256, 128, False, False),
    (1, 1, -1, False, False),
    (15, 31, 32, True, False),
    (17, 100, 32, False, False),
    (17, 100, 16, True, True),
    (33, 640, -1, True, False),
    (16, 640, -1, False, True),
    (80, 640, 64, True, False),
    (31, 100, 7, True, False),
    (19, 97, 13, False, True),
    (65, 200, 1000, True, False),
    (20, 33, 1, True, False),
)
ROWS = (0, 1, 2, 7, 8, 9, 33)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_linear(isa: str, bits: int) -> None:
    for index, (N, K, group_size, zero_points, g_idx) in enumerate(LAYERS):
        layer = make_layer(N, K, bits, group_size, zero_points, g_idx, DTYPES[index % 3])
        arguments = layer.arguments()
        for dtype in DTYPES:
            for M in ROWS:
                x = torch.randn(M, K).to(dtype)
                out = ops.wna16_linear(x, *arguments)
                assert out.dtype == dtype
                assert_close(out, x, layer.weight)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_and_output_dtype(isa: str, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    layer = make_layer(37, 96, 4, 32, True, False, scale_dtype)
    for bias_dtype in DTYPES:
        bias = torch.randn(37).to(bias_dtype)
        for out_dtype in (None, *DTYPES):
            for M in (1, 20):
                x = torch.randn(M, 96).to(dtype)
                out = layer.run(x, bias, out_dtype)
                assert out.dtype == (out_dtype or dtype)
                assert_close(out, x, layer.weight, bias)


@pytest.mark.parametrize("bits", [4, 8])
def test_signed_codes(isa: str, bits: int) -> None:
    layer = make_layer(21, 72, bits, 24, signed=True)
    for M in (1, 12):
        x = torch.randn(M, 72)
        assert_close(layer.run(x), x, layer.weight)


@pytest.mark.parametrize("bits", [2, 4, 5, 6, 8])
def test_plain_unsigned_codes(isa: str, bits: int) -> None:
    """uintB without zero points: the code is the value."""
    layer = make_layer(21, 72, bits, 24, bias=0)
    for M in (1, 12):
        x = torch.randn(M, 72)
        assert_close(layer.run(x), x, layer.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 5, 6, 8])
def test_row_does_not_depend_on_batch_or_threads(isa: str, bits: int, dtype: torch.dtype) -> None:
    for N, K, group_size, zero_points in ((100, 300, 100, True), (150, 512, 128, False)):
        layer = make_layer(N, K, bits, group_size, zero_points)
        arguments = layer.arguments(torch.randn(N))
        x = torch.randn(270, K).to(dtype)
        torch.set_num_threads(2)
        whole = ops.wna16_linear(x, *arguments)
        torch.set_num_threads(1)
        assert torch.equal(ops.wna16_linear(x, *arguments), whole)
        for first, last in ((0, 1), (269, 270), (5, 7), (3, 8), (100, 108), (200, 217), (1, 257)):
            part = ops.wna16_linear(x[first:last], *arguments)
            assert torch.equal(part, whole[first:last]), (first, last)


def test_decoding_by_two_threads(isa: str) -> None:
    layer = make_layer(600, 1024, 4, 128)
    arguments = layer.arguments()
    for M in (1, 3):
        x = torch.randn(M, 1024)
        out = ops.wna16_linear(x, *arguments)
        assert_close(out, x, layer.weight)
        torch.set_num_threads(1)
        assert torch.equal(ops.wna16_linear(x, *arguments), out)
        torch.set_num_threads(2)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_one_row_of_any_length(isa: str, bits: int) -> None:
    """Short, long, longer: one block of columns at a time or several, fetched ahead or not."""
    for K in (640, 1024, 1152, 4160):
        layer = make_layer(150, K, bits, 64, K == 1152)
        x = torch.randn(3, K)
        out = layer.run(x[1:2])
        assert_close(out, x[1:2], layer.weight)
        assert torch.equal(out, layer.run(x)[1:2])


def test_strided_and_shaped_input(isa: str) -> None:
    layer = make_layer(34, 48, 4, 16, True)
    wide = torch.randn(10, 4, 96)
    for x in (
        wide[0, :, :48],
        wide[:, 1, 48:],
        wide[..., ::2],
        wide[0, 0, :48],
        wide[0, 0, ::2],
        wide[:2, :3, :48],
        torch.randn(48, 9).t(),
        torch.randn(1, 48).expand(6, 48),
        torch.randn(0, 3, 48),
    ):
        out = layer.run(x)
        assert out.shape == (*x.shape[:-1], 34)
        assert_close(out.reshape(-1, 34), x.reshape(-1, 48), layer.weight)


def test_out_variant(isa: str) -> None:
    layer = make_layer(34, 48, 4, 16)
    x = torch.randn(5, 48)
    out = torch.full((5, 34), float("nan"), dtype=torch.bfloat16)
    ops.wna16_linear_out(x, *layer.arguments(), out)
    assert torch.equal(out, layer.run(x, None, torch.bfloat16))


def test_nothing_is_written_beyond_the_output(isa: str) -> None:
    for N in (1, 15, 17, 50):
        layer = make_layer(N, 64, 4, 32)
        for M in (1, 3, 30):
            memory = torch.full((M * N + 64,), 7.0)
            ops.wna16_linear_out(
                torch.randn(M, 64), *layer.arguments(), memory[: M * N].reshape(M, N)
            )
            assert bool((memory[M * N :] == 7).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_show(isa: str, value: float) -> None:
    for zero_points in (False, True):
        layer = make_layer(40, 64, 4, 32, zero_points)
        for dtype in DTYPES:
            x = torch.randn(12, 64).to(dtype)
            clean = layer.run(x)
            x[4, 50] = value
            out = layer.run(x)
            # A code that stands for zero times infinity is NaN too, so every output tells.
            assert not bool(out[4].isfinite().any())
            kept = [row for row in range(12) if row != 4]
            assert torch.equal(out[kept], clean[kept])


def test_large_common_offset(isa: str) -> None:
    """Zero points are taken off after the sum: the error must stay that of the sum."""
    layer = make_layer(48, 1024, 4, -1, True)
    for M in (1, 20):
        x = torch.randn(M, 1024) + 1000
        assert_close(layer.run(x), x, layer.weight)


def test_part_of_a_layer_with_the_groups_of_the_whole(isa: str) -> None:
    """One rank's inputs may belong to any group, and to some of them none do."""
    whole = make_layer(32, 256, 4, 32, True, True)
    for part in (slice(0, 96), slice(96, 256), slice(0, 8)):
        assert whole.g_idx is not None
        codes = _unpack(whole.packed, 4, 256)[:, part]
        K = codes.shape[1]
        layer = Layer(
            32,
            K,
            4,
            32,
            pack(codes, 4),
            whole.scale,
            whole.zero_point,
            whole.g_idx[part].contiguous(),
            0,
            whole.weight[:, part],
        )
        for M in (1, 11):
            x = torch.randn(M, K)
            assert_close(layer.run(x), x, layer.weight)


def _unpack(words: torch.Tensor, bits: int, K: int) -> torch.Tensor:
    shifts = torch.arange(0, 32, bits)
    return ((words.long()[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)[:, :K]


def test_random_layers(isa: str) -> None:
    random = torch.Generator().manual_seed(7)

    def pick(*choices: object) -> object:
        return choices[int(torch.randint(len(choices), (), generator=random))]

    for _ in range(60):
        K = int(torch.randint(1, 300, (), generator=random))
        layer = make_layer(
            int(torch.randint(1, 90, (), generator=random)),
            K,
            pick(2, 3, 4, 8),
            pick(-1, 8, 32, 128, K, max(1, K // 3)),
            pick(True, False),
            pick(True, False),
            pick(*DTYPES),
        )
        x = torch.randn(int(torch.randint(1, 40, (), generator=random)), K).to(pick(*DTYPES))
        assert_close(layer.run(x), x, layer.weight)


def test_identity_permutation_costs_nothing() -> None:
    layer = make_layer(16, 64, 4, 32)
    layer.g_idx = (torch.arange(64) // 32).to(torch.int32)
    assert layer.kernel_tensors()[3] is None


def test_pack_errors() -> None:
    good = make_layer(20, 64, 4, 32, True, True)

    def run(**changes: object) -> None:
        values = {
            "packed": good.packed,
            "scale": good.scale,
            "zero": good.zero_point,
            "g_idx": good.g_idx,
            "bits": 4,
            "zero_bias": 0,
            "group_size": 32,
            "k": 64,
        }
        ops.wna16_pack(*{**values, **changes}.values())

    run()
    assert good.g_idx is not None
    wrong_group = good.g_idx.clone()
    wrong_group[3] = 2
    for changes, message in (
        ({"bits": 9}, "bits is 9; allowed: 2 to 8"),
        ({"bits": 1}, "bits is 1"),
        ({"k": 0}, "in_features is 0"),
        ({"k": 65}, r"weight_packed has shape \[20, 8\]; it must be \[20, 9\]"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": -2}, "group_size is -2"),
        ({"zero_bias": 16}, "zero_bias is 16"),
        ({"packed": good.packed.float()}, "weight_packed is Float; it must be Int"),
        ({"packed": good.packed[0]}, "weight_packed has shape"),
        ({"packed": good.packed.t().contiguous().t()}, "weight_packed is not contiguous"),
        ({"packed": torch.zeros(20, 64, dtype=torch.int8)}, "weight_zero_point is given"),
        ({"scale": good.scale.double()}, "weight_scale is Double; allowed: Float, Half, BFloat16"),
        ({"scale": good.scale[:19]}, r"weight_scale has shape \[19, 2\]"),
        ({"scale": good.scale[0]}, "weight_scale has shape"),
        ({"zero": good.scale}, "weight_zero_point is Float"),
        ({"zero": torch.zeros(20, 2, dtype=torch.int32)}, "weight_zero_point has shape"),
        ({"g_idx": good.g_idx[:63]}, r"weight_g_idx has shape \[63\]; it must be \[64\]"),
        ({"g_idx": good.g_idx.long()}, "weight_g_idx is Long"),
        ({"g_idx": wrong_group}, r"weight_g_idx\[3\] is 2; weight_scale has the groups 0 to 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(**changes)


def test_linear_errors() -> None:
    layer = make_layer(20, 60, 4, 30, True, True)
    packed, scale, zero, perm, chunks = layer.kernel_tensors()
    assert zero is not None
    assert perm is not None

    def run(**changes: object) -> None:
        values = {
            "x": torch.randn(3, 60),
            "packed": packed,
            "scale": scale,
            "zero": zero,
            "perm": perm,
            "chunks": chunks,
            "bias": torch.randn(20),
            "bits": 4,
            "k": 60,
            "n": 20,
            "out_dtype": None,
        }
        ops.wna16_linear(*{**values, **changes}.values())

    run()
    broken = chunks.clone()
    broken[0, 1] += 100
    far = perm.clone()
    far[0] = 60
    for changes, message in (
        ({"x": torch.randn(3, 61)}, r"x has shape \[3, 61\]; .* in_features = 60"),
        ({"x": torch.randn(3, 60).double()}, "x is Double; allowed"),
        ({"x": torch.tensor(1.0)}, "x has no dimension"),
        ({"packed": packed[:1]}, r"packed has shape \[1, .*; it must be \[2"),
        ({"packed": packed.float()}, "packed is Float"),
        ({"packed": packed[0]}, "packed has shape"),
        ({"scale": scale.double()}, "scale is Double"),
        ({"scale": scale[..., :8]}, "scale has shape"),
        ({"zero": zero.int()}, "zero is Int; it must be Byte"),
        ({"perm": perm[:-1]}, "perm has shape"),
        ({"perm": far}, "perm has the input 60; in_features is 60"),
        ({"perm": None, "k": 50, "x": torch.randn(3, 50)}, "without perm"),
        ({"chunks": broken}, "chunks does not divide"),
        ({"chunks": chunks[0]}, "chunks has shape"),
        ({"bias": torch.randn(21)}, r"bias has shape \[21\]; it must be \[20\]"),
        ({"bias": torch.randn(20).double()}, "bias is Double"),
        ({"bits": 3}, "bits is 3; allowed: 2, 4, 5, 6, 8"),
        ({"n": 0}, "out_features is 0"),
        ({"k": 0}, "in_features is 0"),
        ({"out_dtype": torch.float64}, "out_dtype is Double"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(**changes)
    arguments = (packed, scale, zero, perm, chunks, None, 4, 60, 20)
    for out, message in (
        (torch.empty(2, 20), r"out has shape \[2, 20\]"),
        (torch.empty(3, 20).double(), "out is Double"),
        (torch.empty(20, 3).t(), "out is not contiguous"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.wna16_linear_out(torch.randn(3, 60), *arguments, out)
