"""SM90's weight-only kernels for many and for medium numbers of rows, against float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from at_once import assert_same_at_once
from qcore_cuda import ops
from qcore_cuda.kernels.gptq_packing import in_lanes
from w4_oracle import activations, assert_product, random_weight

pytestmark = pytest.mark.gpu

HALF, BFLOAT = torch.float16, torch.bfloat16
needs_sm90 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="the kernel is for sm_90",
)

# ---- many rows ---------------------------------------------------------------------------------

TILES = ((64, 128), (128, 128), (128, 256), (256, 128))  # rows, columns
WAYS = [(*tile, parts) for tile in TILES for parts in (0, 1, 2, 3, 4, 8, -2, -6, -14)]


@needs_sm90
@pytest.mark.parametrize("M", [1, 63, 64, 200, 600])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize(
    ("K", "N", "group_size"),
    [(1056, 416, 96), (64, 32, 32), (1024, 352, -1), (4096, 288, 128), (160, 128, 32)],
)
def test_sm90_ways(K: int, N: int, group_size: int, dtype: torch.dtype, bits: int, M: int) -> None:
    w = random_weight(K, N, bits, group_size, dtype)
    x = activations(M, K, dtype)
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), bits)
    size = K if group_size == -1 else group_size
    args = (x.cuda(), words, w.scales.cuda(), w.qzeros(True).cuda(), bits, 1 << (bits - 1), size)
    first = None
    for rows, columns, parts in [(0, 0, 0), *WAYS]:
        out = torch.ops.qcore_cuda.wna16_sm90(*args, rows, columns, parts)
        assert_product(out, x, w.exact, True, (rows, columns, parts))
        again = torch.ops.qcore_cuda.wna16_sm90(*args, rows, columns, parts)
        assert torch.equal(out, again)
        if rows and parts == 0:  # sums do not depend on the tiles
            first = out if first is None else first
            assert torch.equal(out, first)


@needs_sm90
@pytest.mark.parametrize("tile", [(64, 128), (128, 128)])
def test_sm90_help_on_streams_and_in_graphs(tile: tuple[int, int]) -> None:
    """Flags by which blocks wait for each other are those of one launch only."""
    K, N, group_size = 2048, 5120, 128
    w = random_weight(K, N, 4, group_size, BFLOAT)
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), 4)
    rest = (words, w.scales.cuda(), w.qzeros(True).cuda(), 4, 8, group_size)
    many = torch.ops.qcore_cuda.wna16_sm90
    rows = (200, 256, 500)
    xs = [activations(M, K, BFLOAT).cuda() for M in rows]
    whole = [many(x, *rest, *tile, 0).double() for x in xs]
    helped = [many(x, *rest, *tile, -10) for x in xs]
    for one, other in zip(whole, helped, strict=True):
        assert (one - other.double()).norm() <= 2.0**-8 * one.norm()

    assert_same_at_once([partial(many, x, *rest, *tile, -10) for x in xs], helped)


@needs_sm90
def test_sm90_one_zero_for_all_and_bias() -> None:
    w = random_weight(512, 256, 4, 128, BFLOAT)
    w.zeros[:] = 8
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), 4)
    bias = torch.randn(250, device="cuda")
    for M in (40, 300):
        x = activations(M, 512, BFLOAT)
        for b in (bias, bias.to(BFLOAT), None):
            out = torch.ops.qcore_cuda.wna16_linear(
                x.cuda(), words, w.scales.cuda(), None, None, None, b, 4, 8, 128, 512, 250
            )
            plain = torch.ops.qcore_cuda.wna16_sm90(
                x.cuda(), words, w.scales.cuda(), None, 4, 8, 128
            )[:, :250]
            assert_product(plain, x, w.exact[:, :250], True, M)
            added = 0.0 if b is None else b.double()
            close = (out.double() - (plain.double() + added)).abs()
            assert (close <= 2.0**-7 * (plain.double().abs() + abs(added))).all()


@needs_sm90
@pytest.mark.parametrize("group_size", [32, 96, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_zero_point_in_the_middle(bits: int, group_size: int) -> None:
    """Codes are multiplied as subnormal numbers: to the bit what zero points as words give."""
    K, N, zero = 1152, 416, 1 << (bits - 1)
    w = random_weight(K, N, bits, group_size, BFLOAT)
    w.zeros[:] = zero
    w.scales *= torch.logspace(-24, 24, N, base=2).to(BFLOAT)
    w.scales[:, 5] = 0
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), bits)
    rest = (bits, zero, K if group_size == -1 else group_size)
    middle, other = ((words, w.scales.cuda(), z, *rest) for z in (None, w.qzeros(True).cuda()))
    lanes = None
    if bits == 4 and group_size in (128, -1):
        codes = torch.from_numpy(w.codes).to(torch.uint8)
        lanes = (in_lanes(codes).cuda(), *middle[1:])
    many, medium = torch.ops.qcore_cuda.wna16_sm90, torch.ops.qcore_cuda.wna16_mid_m
    for M in (1, 8, 16, 17, 64, 300):
        x = activations(M, K, BFLOAT)
        for rows, columns in TILES:
            for parts in (0, 3, -6):
                way = (rows, columns, parts)
                out = many(x.cuda(), *middle, *way)
                assert torch.equal(out, many(x.cuda(), *other, *way)), (M, way)
            assert_product(out, x, w.exact, True, (M, way))
            if lanes is not None:
                assert torch.equal(out, many(x.cuda(), *lanes, *way))
        out = medium(x.cuda(), *middle)
        assert_product(out, x, w.exact, True, M)
        assert torch.equal(out, medium(x.cuda(), *other))
        if lanes is not None:
            out = medium(x.cuda(), *lanes)  # adds inputs up in another order
            assert_product(out, x, w.exact, True, M)


@needs_sm90
def test_sm90_refuses() -> None:
    w = random_weight(512, 256, 4, 128, HALF)
    args = (w.qweight().cuda(), w.scales.cuda(), None, 4, 8, 128)
    x = activations(40, 512, BFLOAT).cuda()
    with pytest.raises(RuntimeError, match="with scales of a's dtype"):
        torch.ops.qcore_cuda.wna16_sm90(x, *args)
    with pytest.raises(RuntimeError, match="rows=96, columns=128"):
        torch.ops.qcore_cuda.wna16_sm90(x.half(), *args, 96)


# ---- a medium number of rows -------------------------------------------------------------------

MEDIUM_ROWS = (1, 8, 16, 17, 63, 64, 65, 200, 256)
FEW_WAYS = ((1, 1), (3, 8), (4, 2), (7, 1), (8, 8))  # columns / 32, parts of K


@needs_sm90
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("group_size", [32, 64, 96, 128, -1])
def test_medium_rows(group_size: int, dtype: torch.dtype, bits: int, constant: bool) -> None:
    K, N = 1152, 416
    w = random_weight(K, N, bits, group_size, dtype)
    zero = 1 << (bits - 1)
    if constant:
        w.zeros[:] = zero
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), bits)
    size = K if group_size == -1 else group_size
    zeros = None if constant else w.qzeros(True).cuda()
    args = (words, w.scales.cuda(), zeros, bits, zero, size)
    for M in MEDIUM_ROWS:
        x = activations(M, K, dtype)
        rounded = M > 16 or size % 64 != 0  # else sums meet their scales in float32
        for way in [(0, 0, 0), *((0, *way) for way in FEW_WAYS)]:
            out = torch.ops.qcore_cuda.wna16_mid_m(x.cuda(), *args, *way)
            assert_product(out, x, w.exact, rounded, (M, way))
            again = torch.ops.qcore_cuda.wna16_mid_m(x.cuda(), *args, *way)
            assert torch.equal(out, again)


@needs_sm90
@pytest.mark.parametrize("row_tiles", [1, 2, 4, 8])
def test_medium_tiles_and_all_divisions(row_tiles: int) -> None:
    K, N, M = 2048, 1184, 41
    w = random_weight(K, N, 4, 64, BFLOAT)
    x = activations(M, K, BFLOAT)
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), 4)
    args = (x.cuda(), words, w.scales.cuda(), w.qzeros(True).cuda(), 4, 8, 64)
    for columns in range(1, 9):
        for split in (1, 2, 4, 8):
            for turns in (0, min(8, (15 if row_tiles == 8 else 16) // columns)):
                division = (row_tiles, columns, split, turns)
                out = torch.ops.qcore_cuda.wna16_mid_m(*args, *division)
                assert_product(out, x, w.exact, row_tiles > 2, division)


@needs_sm90
@pytest.mark.parametrize(("K", "N"), [(4096, 4096), (4096, 28672), (14336, 4096)])
def test_medium_rows_of_large_layers(K: int, N: int) -> None:
    """Against wgmma's kernel, which has no code in common with it but for the codes."""
    w = random_weight(K, N, 4, 128, BFLOAT)
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), 4)
    args = (words, w.scales.cuda(), w.qzeros(True).cuda(), 4, 8, 128)
    for M in (8, 16, 32, 64, 128, 256):
        x = activations(M, K, BFLOAT).cuda()
        out = torch.ops.qcore_cuda.wna16_mid_m(x, *args).double()
        other = torch.ops.qcore_cuda.wna16_sm90(x, *args).double()
        assert (out - other).norm() <= 2.0**-7 * other.norm()


@needs_sm90
@pytest.mark.parametrize("M", [8, 40, 200])
def test_medium_rows_in_a_layer(M: int) -> None:
    """Fewer inputs and outputs than there are codes, bias, an order of inputs, float32 results."""
    K, N, k_in, n_out = 416, 96, 403, 77
    w = random_weight(K, N, 4, 128, BFLOAT)
    w.zeros[:] = 8
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), 4)
    order = torch.from_numpy(np.random.default_rng(3).permutation(k_in))
    perm = torch.nn.functional.pad(order, (0, K - k_in), value=-1).int().cuda()
    rows = activations(M, k_in, BFLOAT)
    rest = (4, 8, 128, k_in, n_out)
    for p in (None, perm):
        exact = w.exact[:k_in, :n_out]
        if p is not None:
            exact = torch.empty_like(exact).index_copy_(0, order, exact)
        for bias in (None, torch.randn(n_out).cuda(), torch.randn(n_out).to(BFLOAT).cuda()):
            for out_float in (False, True):
                out = torch.ops.qcore_cuda.wna16_linear(
                    rows.cuda(), words, w.scales.cuda(), None, p, None, bias, *rest, out_float
                )
                added = torch.zeros(1, n_out) if bias is None else bias.cpu()[None]
                x = torch.cat([rows, torch.ones(M, 1, dtype=BFLOAT)], 1)
                whole = torch.cat([exact, added.double()])
                assert_product(out, x, whole, M > 16, (p is None, out_float))


@needs_sm90
def test_medium_rows_refuse() -> None:
    w = random_weight(512, 256, 4, 32, HALF)
    x = activations(40, 512, HALF).cuda()
    args = (x, w.qweight().cuda(), w.scales.cuda(), None, 4, 8, 32)
    with pytest.raises(RuntimeError, match="row_tiles=2"):
        torch.ops.qcore_cuda.wna16_mid_m(*args, 2, 4, 1)
    with pytest.raises(RuntimeError, match="split=3"):
        torch.ops.qcore_cuda.wna16_mid_m(*args, 0, 4, 3)
    with pytest.raises(RuntimeError, match="k_warps=4 beside column_warps=4"):
        torch.ops.qcore_cuda.wna16_mid_m(*args, 8, 4, 1, 4)
    with pytest.raises(RuntimeError, match="with scales of a's dtype"):
        torch.ops.qcore_cuda.wna16_mid_m(x.bfloat16(), *args[1:])
