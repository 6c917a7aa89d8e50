"""Weights of e4m3 and e2m1 on a GPU, against float64: every kernel, and the layers' classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qcore.layers import Mxfp8LinearLayerConfig
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


class TestFP8(KernelConformance):
    kernel_class = small_floats.HopperFP8ScaledMMLinearKernel
    spec = SPECS["HopperFP8ScaledMMLinearKernel"]
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
    if group_size == -1:
        return way in (TABLE, WHOLE)
    return way != FEW and not (way == MEDIUM and M <= 16)


@pytest.mark.parametrize(("bits", "dtype"), CODES)
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize(("K", "N"), [(1152, 416), (64, 32), (4096, 288)])
def test_rows(K: int, N: int, group_size: int, bits: int, dtype: torch.dtype) -> None:
    if K % max(group_size, 1):
        pytest.skip("groups are equal")
    w = random_float_weight(K, N, bits, group_size, dtype)
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


@needs_sm90
@pytest.mark.parametrize(("bits", "dtype"), CODES)
@pytest.mark.parametrize("M", [1, 8, 40, 300])
def test_padding_and_bias(M: int, bits: int, dtype: torch.dtype) -> None:
    """Fewer inputs and outputs than there are codes, any bias, float32 results."""
    K, N, k_in, n_out = 416, 96, 403, 77
    rows = activations(M, k_in, dtype)
    for group_size in (-1, 32):
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


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("K", "N"), [(4096, 4096), (4096, 28672), (14336, 4096)])
def test_large_layers(K: int, N: int, bits: int) -> None:
    """Every kernel against the weight made whole."""
    w = random_float_weight(K, N, bits, 32, BFLOAT)
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


def test_nan() -> None:
    """A NaN among weights makes its column NaN, for any number of rows, and no other."""
    from qcore.kernels import process_weights
    from qcore.testing import make_layer, random_tensors

    config = Mxfp8LinearLayerConfig((64, 256), None, BFLOAT)
    tensors = random_tensors(config)
    tensors["weight"].view(torch.uint8)[11, 100] = 0x7F
    kernel = small_floats.HopperMxfp8LinearKernel.from_config(config)
    layer = make_layer(config, tensors, device="cuda")
    process_weights(kernel, layer)
    for M in (1, 12, 60, 400):
        out = kernel.apply_weights(layer, torch.randn(M, 256, device="cuda").to(BFLOAT))
        assert out.isnan().all(0).nonzero().flatten().tolist() == [11]
        assert out.isnan().sum() == M


def test_opcheck_and_graph() -> None:
    w = random_float_weight(256, 128, 8, -1, HALF)
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
    with pytest.raises(RuntimeError, match="groups; they are for one"):
        op(x.cuda(), *before[:2], torch.ones(128).cuda(), None, *behind, 256, 128)
    with pytest.raises(RuntimeError, match="scales have 8 rows"):
        op(x.cuda(), *before, None, 4, 64, 256, 128)
    with pytest.raises(RuntimeError, match="bits is 3"):
        op(x.cuda(), *before, None, 3, 32, 256, 128)
