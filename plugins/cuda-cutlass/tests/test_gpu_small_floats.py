"""Weights of e4m3 and e2m1 on a GPU, against float64: every kernel, and the layers' classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qcore.layers import Mxfp8LinearLayerConfig, NvFp4LinearLayerConfig
from qcore.testing import KernelConformance
from qcore_cuda import library, plugin
from qcore_cuda.kernels import small_floats
from qcore_cuda.kernels.gptq_packing import pack_along_k
from small_float_oracle import FloatWeight, random_float_weight
from w4_oracle import activations, assert_product

pytestmark = pytest.mark.gpu

Tensor = torch.Tensor
SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}
HALF, BFLOAT = torch.float16, torch.bfloat16
ROWS = (0, 1, 7, 8, 17, 64, 65, 257, 1000)
TABLE, FEW, MEDIUM, MANY, WHOLE = -1, 0, 1, 2, 3
# Bits, dtype of activations: e2m1 has scales of e8m0, for which float16 has no room.
CODES = [(8, HALF), (8, BFLOAT), (4, BFLOAT)]
# These with sizes of groups, and whether columns have scales as well.
FORMATS = [
    *((bits, dtype, size, False) for bits, dtype in CODES for size in (-1, 32, 64, 128)),
    *((8, dtype, 128, True) for dtype in (HALF, BFLOAT)),  # blocks of FP8
    *((4, dtype, 16, False) for dtype in (HALF, BFLOAT)),  # NVFP4
]


class TestFP8(KernelConformance):
    kernel_class = small_floats.HopperFP8ScaledMMLinearKernel
    spec = SPECS["HopperFP8ScaledMMLinearKernel"]
    device = "cuda"


class TestFp8Block(KernelConformance):
    kernel_class = small_floats.HopperFp8BlockScaledMMKernel
    spec = SPECS["HopperFp8BlockScaledMMKernel"]
    device = "cuda"


class TestNvFp4(KernelConformance):
    kernel_class = small_floats.HopperNvFp4LinearKernel
    spec = SPECS["HopperNvFp4LinearKernel"]
    device = "cuda"


class TestMxFp4(KernelConformance):
    kernel_class = small_floats.HopperMxFp4LinearKernel
    spec = SPECS["HopperMxFp4LinearKernel"]
    device = "cuda"


class TestMxfp8(KernelConformance):
    kernel_class = small_floats.HopperMxfp8LinearKernel
    spec = SPECS["HopperMxfp8LinearKernel"]
    device = "cuda"


ON_SM90 = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
WAYS = (TABLE, FEW, MEDIUM, MANY, WHOLE) if ON_SM90 else (TABLE, FEW, WHOLE)
needs_sm90 = pytest.mark.skipif(not ON_SM90, reason="two of the kernels are for sm_90")


def operands(w: FloatWeight) -> tuple[Any, ...]:
    """On the GPU; what the op wants between activations and bias, and behind bias."""
    library.load()
    K = w.codes.shape[0]
    words = pack_along_k(torch.from_numpy(w.codes).to(torch.uint8).cuda(), w.bits)
    column = None if w.column is None else w.column.cuda()
    if w.size == 16:
        return (words, w.scale_bytes.cuda(), column), (w.bits, 16)
    group_size = -(-K // w.scales.shape[0] // 32) * 32
    return (words, w.scales.cuda(), column), (w.bits, group_size)


def linear(
    x: Tensor,
    w: FloatWeight,
    way: int = TABLE,
    bias: Tensor | None = None,
    n_out: int | None = None,
    out_float: bool = False,
) -> Tensor:
    before, behind = operands(w)
    columns = w.codes.shape[1] if n_out is None else n_out
    return torch.ops.qcore_cuda.small_float_linear(  # type: ignore[no-any-return]
        x.cuda(), *before, bias, *behind, x.shape[-1], columns, out_float, way
    )


def rounds_weights(way: int, group_size: int, M: int) -> bool:
    """Ones and powers of two round nothing; of a weight made whole any scale does."""
    if group_size == 32:
        return False
    if group_size in (-1, 16):
        return way in (TABLE, WHOLE)
    return way != FEW and not (way == MEDIUM and M <= 16)


@pytest.mark.parametrize(("bits", "dtype", "group_size", "both"), FORMATS)
@pytest.mark.parametrize(("K", "N"), [(1152, 416), (64, 32), (4096, 288)])
def test_rows(K: int, N: int, bits: int, dtype: torch.dtype, group_size: int, both: bool) -> None:
    if K % max(group_size, 1):
        pytest.skip("groups are equal")
    w = random_float_weight(K, N, bits, group_size, dtype, both=both)
    exact = w.exact
    for M in ROWS:
        x = activations(M, K, dtype)
        for way in WAYS:
            if way == FEW and M > 65:
                continue
            out = linear(x, w, way)
            assert out.dtype == dtype
            assert_product(out, x, exact, rounds_weights(way, group_size, M), (M, way))
            assert torch.equal(linear(x, w, way), out)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("K", [32, 96, 160])
def test_few_inputs(K: int, dtype: torch.dtype) -> None:
    """NVFP4 where K ends within a piece: also of one pair of groups."""
    w = random_float_weight(K, 64, 4, 16, dtype)
    for M in (1, 9, 33, 200):
        x = activations(M, K, dtype)
        for way in WAYS:
            if way != FEW or M <= 65:
                assert_product(linear(x, w, way), x, w.exact, rounds_weights(way, 16, M), (M, way))


@needs_sm90
@pytest.mark.parametrize(
    ("bits", "dtype", "sizes"),
    [*((bits, dtype, (-1, 32)) for bits, dtype in CODES), (4, HALF, (16,)), (4, BFLOAT, (16,))],
)
@pytest.mark.parametrize("M", [1, 8, 40, 300])
def test_padding_and_bias(M: int, bits: int, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    """Fewer inputs and outputs than there are codes, any bias, float32 results."""
    K, N, k_in, n_out = 416, 96, 403, 77
    rows = activations(M, k_in, dtype)
    for group_size in sizes:
        w = random_float_weight(K, N, bits, group_size, dtype)
        exact = w.exact[:k_in, :n_out]
        for bias in (None, torch.randn(n_out).cuda(), torch.randn(n_out).to(dtype).cuda()):
            for way in WAYS:
                for out_float in (False, True):
                    if way == MANY and out_float:
                        continue
                    if way == WHOLE and not out_float:
                        continue  # rounded before the bias is added
                    out = linear(rows, w, way, bias, n_out, out_float)
                    added = torch.zeros(1, n_out) if bias is None else bias.cpu()[None]
                    x = torch.cat([rows, torch.ones(M, 1, dtype=dtype)], 1)
                    whole = torch.cat([exact, added.double()])
                    rounded = rounds_weights(way, group_size, M)
                    assert_product(out, x, whole, rounded, (group_size, way, out_float))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 32), (4, 16)])
@pytest.mark.parametrize(("K", "N"), [(4096, 4096), (4096, 28672), (14336, 4096)])
def test_large_layers(K: int, N: int, bits: int, group_size: int) -> None:
    """Every kernel against the weight made whole."""
    w = random_float_weight(K, N, bits, group_size, BFLOAT)
    before, behind = operands(w)
    for M in (1, 8, 16, 32, 64, 128, 256):
        x = activations(M, K, BFLOAT).cuda()
        args = (x, *before, None, *behind, K, N, False)
        other = torch.ops.qcore_cuda.small_float_linear(*args, WHOLE).double()
        for way in WAYS:
            if way == FEW and M > 64:
                continue
            out = torch.ops.qcore_cuda.small_float_linear(*args, way).double()
            assert (out - other).norm() <= 2.0**-7 * other.norm(), (M, way)


def test_every_code_alone() -> None:
    """A row of the identity brings out each code as it is, of all that a word can hold beside."""
    for bits, dtype in CODES:
        w = random_float_weight(512, 256, bits, 32, dtype)
        w.scales[:] = 1.0
        w.codes[:256] = (torch.arange(256)[:, None] + torch.arange(256)).numpy() % (1 << bits)
        if bits == 8:
            w.codes[(w.codes & 0x7F) == 0x7F] = 1
        for way in WAYS:
            rows = 64 if way == FEW else 512
            for first in range(0, 512, rows):
                x = torch.eye(512).to(dtype)[first : first + rows]
                out = linear(x, w, way).cpu().double()
                assert torch.equal(out, w.exact[first : first + rows]), (bits, dtype, way)


def test_every_code_and_scale_of_nvfp4() -> None:
    """A row of the identity brings out each product as it is, but for the scale of its column."""
    for dtype in (HALF, BFLOAT):
        w = random_float_weight(512, 256, 4, 16, dtype)
        assert w.column is not None
        w.column[:] = 2.0**-3
        w.codes[:] = (torch.arange(512)[:, None] + torch.arange(256)).numpy() % 16
        for way in WAYS:
            rows = 64 if way == FEW else 512
            for first in range(0, 512, rows):
                x = torch.eye(512).to(dtype)[first : first + rows]
                out = linear(x, w, way).cpu().double()
                assert torch.equal(out, w.exact[first : first + rows]), (dtype, way)


@pytest.mark.parametrize(
    ("kernel_class", "config", "name", "at"),
    [
        (
            small_floats.HopperMxfp8LinearKernel,
            Mxfp8LinearLayerConfig((64, 256), None, BFLOAT),
            "weight",
            (11, 100),
        ),
        (
            small_floats.HopperNvFp4LinearKernel,
            NvFp4LinearLayerConfig((64, 272), None, HALF),
            "weight_scale",
            (11, 3),
        ),
    ],
    ids=["mxfp8", "nvfp4"],
)
def test_nan(kernel_class: Any, config: Any, name: str, at: tuple[int, int]) -> None:
    """A NaN among weights or scales makes its column NaN, for any number of rows, and no other."""
    from qcore.kernels import process_weights
    from qcore.testing import make_layer, random_tensors

    tensors = random_tensors(config)
    tensors[name].view(torch.uint8)[at] = 0x7F
    kernel = kernel_class.from_config(config)
    layer = make_layer(config, tensors, device="cuda")
    process_weights(kernel, layer)
    dtype = config.activation_dtype
    for M in (1, 12, 60, 400):
        x = torch.randn(M, config.in_features, device="cuda").to(dtype)
        out = kernel.apply_weights(layer, x)
        assert out.isnan().all(0).nonzero().flatten().tolist() == [11]
        assert out.isnan().sum() == M


@pytest.mark.parametrize(("bits", "group_size"), [(8, -1), (4, 16)])
def test_opcheck_and_graph(bits: int, group_size: int) -> None:
    w = random_float_weight(256, 128, bits, group_size, HALF)
    before, behind = operands(w)
    op = torch.ops.qcore_cuda.small_float_linear
    for M in (4, 100):
        x = activations(M, 256, HALF).cuda()
        args = (x, *before, None, *behind, 256, 128)
        torch.library.opcheck(op.default, args)
        first = op(*args)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = op(*args)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, first)


def test_refusals() -> None:
    w = random_float_weight(256, 128, 4, 32, BFLOAT)
    x = activations(4, 256, BFLOAT)
    with pytest.raises(RuntimeError, match="a is Half"):
        linear(x.half(), w)
    with pytest.raises(RuntimeError, match="way is 4"):
        linear(x, w, 4)
    before, behind = operands(w)
    op = torch.ops.qcore_cuda.small_float_linear
    with pytest.raises(RuntimeError, match="beside e2m1 they are for one group"):
        op(x.cuda(), *before[:2], torch.ones(128).cuda(), None, *behind, 256, 128)
    (words, scales, column), sizes = operands(random_float_weight(256, 128, 4, 16, BFLOAT))
    with pytest.raises(RuntimeError, match="no column_scales; groups of 16 need them"):
        op(x.cuda(), words, scales, None, None, *sizes, 256, 128)
    with pytest.raises(RuntimeError, match="and scales 3"):
        op(x.cuda(), words, scales[..., 0], column, None, *sizes, 256, 128)
    with pytest.raises(RuntimeError, match="scales"):
        op(x.cuda(), words, scales.bfloat16(), column, None, *sizes, 256, 128)
    with pytest.raises(RuntimeError, match="scales have 8 rows"):
        op(x.cuda(), *before, None, 4, 64, 256, 128)
    with pytest.raises(RuntimeError, match="bits is 3"):
        op(x.cuda(), *before, None, 3, 32, 256, 128)
