"""The activation quantizers against the core's numerics and against definitions written here."""

from __future__ import annotations

import pytest
import torch
from qcore.numerics import activation_quant
from qcore_cuda import ops

pytestmark = pytest.mark.gpu


class _OnCpu:
    """The core's quantizers, on a CPU: there torch divides, on a GPU it multiplies by 1 / 127."""

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            def to(value, device):  # type: ignore[no-untyped-def]
                return value.to(device) if isinstance(value, torch.Tensor) else value

            found = getattr(activation_quant, name)(
                *(to(a, "cpu") for a in args), **{k: to(v, "cpu") for k, v in kwargs.items()}
            )
            if isinstance(found, tuple):
                return tuple(to(value, "cuda") for value in found)
            return to(found, "cuda")

        return call


core = _OnCpu()

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 64), (1, 16), (1, 1), (3, 33), (7, 4096), (64, 14336), (5, 70000), (300, 1024)]
SHAPES += [(270, 9008), (2, 40000)]  # vectors of a row by eights in a thread


def make(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.randn(shape[-1], generator=generator).exp()
    if x.numel() > 40:
        x[-1, : x.shape[1] // 2] = 0
    return x.to(dtype).cuda()


def odd_views(x: torch.Tensor) -> list[torch.Tensor]:
    """The same values behind other strides and alignments."""
    wide = torch.zeros(x.shape[0], x.shape[1] + 5, dtype=x.dtype, device=x.device)
    wide[:, 3:-2] = x
    columns = x.t().contiguous().t()
    return [wide[:, 3:-2], columns]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic_int8(shape: tuple[int, int], dtype: torch.dtype, symmetric: bool) -> None:
    x = make(shape, dtype)
    expected = core.dynamic_int8_quant(x, symmetric)
    for view in [x, *odd_views(x)]:
        codes, scale, azp = ops.scaled_int8_quant(view, symmetric=symmetric)
        torch.testing.assert_close(scale, expected[1], rtol=0, atol=0)
        assert torch.equal(codes, expected[0])
        if symmetric:
            assert azp is None
        else:
            assert azp is not None
            assert expected[2] is not None
            assert torch.equal(azp, expected[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zero", [None, -3, 128 - 1])
def test_static_int8(shape: tuple[int, int], dtype: torch.dtype, zero: int | None) -> None:
    x = make(shape, dtype)
    scale = torch.tensor([0.037], device="cuda")
    azp = None if zero is None else torch.tensor([zero], dtype=torch.int32, device="cuda")
    expected = core.static_int8_quant(x, scale, azp)
    for view in [x, *odd_views(x)]:
        codes, _, _ = ops.scaled_int8_quant(view, scale, azp, symmetric=azp is None)
        assert torch.equal(codes, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["static", "tensor", "token", "bounded"])
def test_fp8(shape: tuple[int, int], dtype: torch.dtype, mode: str) -> None:
    x = make(shape, dtype)
    scale = torch.tensor([0.013], device="cuda") if mode == "static" else None
    bound = torch.tensor([1.5], device="cuda") if mode == "bounded" else None
    token = mode in ("token", "bounded")
    expected = core.scaled_fp8_quant(x, scale, per_token=token, upper_bound=bound)
    for view in [x, *odd_views(x)]:
        codes, found = ops.scaled_fp8_quant(
            view, scale, scale_ub=bound, use_per_token_if_dynamic=token
        )
        torch.testing.assert_close(found, expected[1], rtol=0, atol=0)
        assert torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, 100, 1024])
@pytest.mark.parametrize("M", [0, 1, 5, 130])
def test_group_fp8(M: int, group: int, dtype: torch.dtype) -> None:
    for K in (group, 4 * group, 1024, 1000):
        x = make((M, K), dtype)
        expected = core.group_fp8_quant(x, group)
        for view in [x, *odd_views(x)]:
            for column_major in (False, True):
                codes, scale = ops.per_token_group_fp8_quant(
                    view, group, 1e-30, column_major_scales=column_major
                )
                # Of a group of zeros the scale is 1 there and eps / 448 here.
                scale = torch.where(scale < 1e-30, torch.ones_like(scale), scale)
                torch.testing.assert_close(scale, expected[1], rtol=0, atol=0)
                assert torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8))


def power_of_two_up(s: torch.Tensor) -> torch.Tensor:
    mantissa, exponent = torch.frexp(s.double())
    return torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("M", [1, 3, 4, 130])
@pytest.mark.parametrize("groups", [1, 4, 7])
def test_packed_scales(M: int, groups: int, group: int) -> None:
    x = make((M, groups * group), torch.bfloat16)
    codes, words = ops.per_token_group_fp8_quant_packed(x, group)
    blocks = x.float().reshape(M, groups, group)
    scale = power_of_two_up((blocks.abs().amax(-1).clamp(min=1e-10) / 448).clamp(min=1e-10)).float()
    expected = (blocks / scale[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(codes.view(torch.uint8), expected.reshape(M, -1).view(torch.uint8))
    assert words.shape == (M, -(-groups // 4))
    assert words.stride(0) == 1
    exponents = torch.log2(scale.double()).round().int() + 127
    for g in range(groups):
        byte = words[:, g // 4] >> (8 * (g % 4)) & 0xFF
        assert torch.equal(byte, exponents[:, g])
    for g in range(groups, 4 * words.shape[1]):
        assert not (words[:, g // 4] >> (8 * (g % 4)) & 0xFF).any()
    plain, found = ops.per_token_group_fp8_quant(x, group, use_ue8m0=True)
    assert torch.equal(found, scale)
    assert torch.equal(plain.view(torch.uint8), codes.view(torch.uint8))


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)


def nearest_e2m1(v: torch.Tensor) -> torch.Tensor:
    """Codes by search: the nearest value, of two as near the one with the even code."""
    distance = (v.double().abs()[..., None] - E2M1.to(v.device)).abs()
    odd = torch.arange(8, device=v.device) % 2 * 1e-12
    return (distance + odd).argmin(-1) + 8 * torch.signbit(v).long()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 48), (128, 64), (130, 1024), (0, 64)])
@pytest.mark.parametrize("swizzled", [False, True])
def test_fp4(shape: tuple[int, int], dtype: torch.dtype, swizzled: bool) -> None:
    x = make(shape, dtype)
    M, N = shape
    amax = x.float().abs().max() if M else torch.ones((), device="cuda")
    gs = (448 * 6 / amax).reshape(1).float()
    for view in [x, *odd_views(x)]:
        codes, sf = ops.scaled_fp4_quant(view, gs, swizzled)
        blocks = x.float().reshape(M, N // 16, 16)
        scale = (gs * (blocks.abs().amax(-1) / 6)).to(torch.float8_e4m3fn) if M else blocks[..., 0]
        decoded = scale.float()
        factor = torch.where(decoded == 0, torch.zeros_like(decoded), gs / decoded)
        expected = nearest_e2m1(blocks * factor[..., None]).reshape(M, N)
        assert codes.shape == (M, N // 2)
        assert torch.equal((codes & 15).long(), expected[:, 0::2])
        assert torch.equal((codes >> 4).long(), expected[:, 1::2])
        raw = scale.view(torch.uint8) if M else torch.zeros(0, N // 16, device="cuda").byte()
        if not swizzled:
            assert torch.equal(sf, raw)
            continue
        rows, groups = -(-M // 128) * 128, -(-(N // 16) // 4) * 4
        padded = torch.zeros(rows, groups, dtype=torch.uint8, device="cuda")
        padded[:M, : N // 16] = raw
        order = padded.reshape(rows // 128, 4, 32, groups // 4, 4).permute(0, 3, 2, 1, 4)
        assert sf.shape == (rows, groups // 4)
        assert torch.equal(sf.view(torch.uint8).reshape(-1), order.reshape(-1))


def test_special_values_show() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(4, 256, device="cuda")
        x[2, 17] = value
        codes, scale, _ = ops.scaled_int8_quant(x)
        assert torch.equal(scale.isnan().flatten().cpu(), torch.tensor([0, 0, 1, 0]).bool())
        expected = core.dynamic_int8_quant(x)
        assert torch.equal(codes, expected[0])
        codes, scale = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
        wanted = core.scaled_fp8_quant(x, per_token=True)
        torch.testing.assert_close(scale, wanted[1], equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(codes.float(), wanted[0].float(), equal_nan=True, rtol=0, atol=0)
        codes, _ = ops.per_token_group_fp8_quant(x, 128)
        assert codes.float()[2, :128].isnan().any()
        assert not codes.float()[2, 128:].isnan().any()


def test_captured_and_on_another_stream() -> None:
    x = make((64, 4096), torch.bfloat16)
    expected, scale, _ = ops.scaled_int8_quant(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes, found, _ = ops.scaled_int8_quant(x)
        groups, _ = ops.per_token_group_fp8_quant(x, 128)
        four, _ = ops.scaled_fp4_quant(x, torch.ones(1, device="cuda"))
    codes.zero_()
    graph.replay()
    assert torch.equal(codes, expected)
    assert torch.equal(found, scale)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other, _, _ = ops.scaled_int8_quant(x)
    stream.synchronize()
    assert torch.equal(other, expected)
    assert groups.shape == x.shape
    assert four.shape == (64, 2048)


def test_operators_are_well_formed() -> None:
    x = make((5, 640), torch.bfloat16)
    one, zero = torch.ones(1, device="cuda"), torch.zeros(1, dtype=torch.int32, device="cuda")
    space = torch.ops.qcore_cuda
    checks = ("test_schema", "test_faketensor")
    for op, args in [
        (space.static_scaled_int8_quant.new, (x, one, zero)),
        (space.dynamic_scaled_int8_quant.new, (x, True)),
        (space.dynamic_scaled_int8_quant.new, (x, False)),
        (space.static_scaled_fp8_quant.new, (x, one)),
        (space.dynamic_scaled_fp8_quant.new, (x,)),
        (space.dynamic_per_token_scaled_fp8_quant.new, (x, None)),
        (space.per_token_group_fp8_quant.new, (x, 128, 1e-10, False, False, False)),
        (space.per_token_group_fp8_quant.new, (x, 128, 1e-10, True, True, True)),
        (space.per_token_group_fp8_quant_packed.new, (x, 128, 1e-10)),
        (space.scaled_fp4_quant.default, (x, one, True)),
    ]:
        torch.library.opcheck(op, args, test_utils=checks)


def test_operators_that_write() -> None:
    # What is written into 8-bit floats cannot be compared by opcheck: torch does not multiply them.
    x = make((5, 640), torch.bfloat16)
    q8 = torch.empty(5, 640, dtype=torch.int8, device="cuda")
    f8 = torch.empty(5, 640, dtype=torch.float8_e4m3fn, device="cuda")
    one, rows = torch.ones(1, device="cuda"), torch.ones(5, 1, device="cuda")
    zeros = torch.zeros(5, 1, dtype=torch.int32, device="cuda")
    space = torch.ops.qcore_cuda
    both, fake = ("test_schema", "test_faketensor"), ("test_faketensor",)
    for op, args, checks in [
        (space.static_scaled_int8_quant.default, (q8, x, one, None), both),
        (space.dynamic_scaled_int8_quant.default, (q8, x, rows, zeros), both),
        (space.static_scaled_fp8_quant.default, (f8, x, one), fake),
        (space.dynamic_scaled_fp8_quant.default, (f8, x, one), fake),
        (space.dynamic_per_token_scaled_fp8_quant.default, (f8, x, rows, None), fake),
    ]:
        torch.library.opcheck(op, args, test_utils=checks)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.scaled_int8_quant(torch.ones(2, 4).cuda().long()), "input is Long"),
        (
            lambda: ops.scaled_fp8_quant(torch.ones(2, 4).cuda(), torch.ones(2).cuda()),
            "scale has shape",
        ),
        (
            lambda: ops.scaled_fp4_quant(torch.ones(2, 20).cuda(), torch.ones(1).cuda()),
            "multiple of 16",
        ),
        (lambda: ops.scaled_int8_quant(torch.ones(2, 4).cuda(), torch.ones(1)), "scale is not on"),
    ],
)
def test_errors_name_the_argument(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError, match=words):
        call()
