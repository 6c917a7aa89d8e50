"""The weight-only ops on a GPU, against float64 from layouts written down independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from qcore.testing import KernelConformance
from qcore_cuda import ops, plugin
from qcore_cuda.kernels.exllama import ExllamaLinearKernel
from w4_oracle import (
    Weight,
    activations,
    assert_product,
    assert_weight,
    random_weight,
    write_awq,
)

pytestmark = pytest.mark.gpu

Tensor = torch.Tensor
SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}
HALF, BFLOAT = torch.float16, torch.bfloat16
FEW_ROWS = 16  # csrc/w4_ways.h: beyond it weights may be rounded
ROWS = (0, 1, 2, 7, 8, 9, 16, 17, 32, 33, 65, 300)


class TestExllama(KernelConformance):
    kernel_class = ExllamaLinearKernel
    spec = SPECS["ExllamaLinearKernel"]
    device = "cuda"


def gptq(x: Tensor, w: Weight, *, v2: bool = False, shuffled: bool = False) -> Tensor:
    words = w.qweight().cuda()
    if shuffled:
        ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), w.bits)
    zeros, scales = w.qzeros(v2).cuda(), w.scales.cuda()
    return ops.gptq_gemm(x, words, zeros, scales, None, shuffled, v2, w.bits)


def awq_tensors(w: Weight) -> tuple[Tensor, Tensor, Tensor]:
    return write_awq(w.codes).cuda(), w.scales.cuda(), write_awq(w.zeros).cuda()


# ---- GPTQ --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
def test_gptq_rows(bits: int, group_size: int, dtype: torch.dtype) -> None:
    K, N = 384, 160
    w = random_weight(K, N, bits, group_size, dtype)
    for M in ROWS:
        x = activations(M, K, dtype)
        for v2, shuffled in ((False, False), (True, True)):
            out = gptq(x.cuda(), w, v2=v2, shuffled=shuffled)
            assert out.dtype == dtype
            assert_product(out, x, w.exact, M > FEW_ROWS, (M, v2, shuffled))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("K", "N", "group_size"),
    [
        (32, 32, -1),
        (96, 32, 96),
        (480, 32, 48),  # groups that the kernel for few rows does not take
        (480, 64, 160),
        (992, 96, 32),
        (4096, 288, 128),
        (14336, 64, 128),
        (64, 4128, 64),
    ],
)
def test_gptq_shapes(K: int, N: int, group_size: int, bits: int) -> None:
    w = random_weight(K, N, bits, group_size, BFLOAT)
    rounded = group_size == 48
    for M in (1, 5, 16, 40, 130):
        x = activations(M, K, BFLOAT)
        for shuffled in (False, True):
            out = gptq(x.cuda(), w, shuffled=shuffled)
            assert_product(out, x, w.exact, rounded or M > FEW_ROWS, (M, shuffled))


@pytest.mark.parametrize(("K", "N"), [(200, 72), (40, 8), (8, 136), (1000, 1000)])
def test_gptq_ragged(K: int, N: int) -> None:
    for group_size in (-1, 8, 40):
        if group_size > 0 and K % group_size:
            continue
        w = random_weight(K, N, 4, group_size, HALF)
        for M in (1, 9, 70):
            x = activations(M, K, HALF)
            rounded = M > FEW_ROWS or group_size not in (-1, K)
            assert_product(gptq(x.cuda(), w), x, w.exact, rounded, (group_size, M))


def test_eight_bits_with_k_a_multiple_of_four() -> None:
    w = random_weight(148, 40, 8, -1, BFLOAT)
    for M in (1, 9, 70):
        x = activations(M, 148, BFLOAT)
        assert_product(gptq(x.cuda(), w), x, w.exact, M > FEW_ROWS, M)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scales", [HALF, BFLOAT, torch.float32])
def test_gptq_scales_of_another_dtype(bits: int, scales: torch.dtype) -> None:
    w = random_weight(256, 96, bits, 64, scales)
    for dtype in (HALF, BFLOAT):
        for M in (3, 20, 90):
            x = activations(M, 256, dtype)
            assert_product(gptq(x.cuda(), w, v2=True), x, w.exact, M > FEW_ROWS, (dtype, M))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_gptq_activation_order(bits: int, dtype: torch.dtype) -> None:
    K, N, size = 256, 64, 32
    order = np.random.default_rng(5).permutation(K)
    g_idx = (np.arange(K) // size)[order]
    w = random_weight(K, N, bits, size, dtype, groups=g_idx)
    words, zeros, scales = w.qweight().cuda(), w.qzeros(False).cuda(), w.scales.cuda()
    groups = torch.from_numpy(g_idx).int().cuda()
    perm = torch.argsort(groups, stable=True).int()
    shuffled = words.clone()
    ops.gptq_shuffle(shuffled, perm, bits)
    assert_weight(ops.gptq_dequantize(words, zeros, scales, groups, bit=bits), w.exact, "plain")
    assert_weight(
        ops.gptq_dequantize(shuffled, zeros, scales, perm, use_exllama=True, bit=bits),
        w.exact,
        "shuffled",
    )
    for M in (1, 16, 50, 100):
        x = activations(M, K, dtype)
        out = ops.gptq_gemm(x.cuda(), words, zeros, scales, groups, False, False, bits)
        assert_product(out, x, w.exact, True, M)
        out = ops.gptq_gemm(x.cuda(), shuffled, zeros, scales, perm, True, False, bits)
        assert_product(out, x, w.exact, M > FEW_ROWS, M)


def test_gptq_groups_of_any_kind() -> None:
    """Unequal groups, one of them empty; one that is not there makes its inputs' weights NaN."""
    K, N = 128, 32
    g_idx = np.random.default_rng(2).choice([0, 0, 0, 2, 3], K)
    w = random_weight(K, N, 4, 32, BFLOAT, groups=g_idx)
    groups = torch.from_numpy(g_idx).int().cuda()
    args = (w.qweight().cuda(), w.qzeros(False).cuda(), w.scales.cuda())
    x = activations(6, K, BFLOAT)
    out = ops.gptq_gemm(x.cuda(), *args, groups, False, False, 4)
    assert_product(out, x, w.exact, True, "unequal")
    groups[7] = 4
    groups[9] = -1
    made = ops.gptq_dequantize(*args, groups)
    assert made[[7, 9]].isnan().all()
    assert made.isfinite().all(1).sum() == K - 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_dequantize(bits: int) -> None:
    for group_size in (-1, 8, 32, 80):
        w = random_weight(320, 96, bits, group_size, HALF)
        words, scales = w.qweight().cuda(), w.scales.cuda()
        shuffled = words.clone()
        ops.gptq_shuffle(shuffled, torch.empty(0, dtype=torch.int32, device="cuda"), bits)
        for v2 in (False, True):
            zeros = w.qzeros(v2).cuda()
            for dtype in (HALF, BFLOAT):
                for tensor, exllama in ((words, False), (shuffled, True)):
                    out = ops.gptq_dequantize(tensor, zeros, scales, None, exllama, v2, bits, dtype)
                    assert out.dtype == dtype
                    assert_weight(out, w.exact, (group_size, v2, dtype, exllama))


def test_shuffled_words() -> None:
    word = torch.tensor([[0x76543210]], dtype=torch.int32, device="cuda")
    nothing = torch.empty(0, dtype=torch.int32, device="cuda")
    ops.gptq_shuffle(word, nothing, 4)
    assert word.item() == 0x75316420
    word = torch.tensor([[0b11100100]], dtype=torch.int32, device="cuda")  # 0 1 2 3 0 0 ...
    ops.gptq_shuffle(word, nothing, 2)
    assert word.item() == (0b1000 | 0b1101 << 16)


# ---- AWQ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize(
    ("K", "N", "group_size"),
    [
        (256, 64, -1),
        (256, 96, 32),
        (384, 192, 64),
        (256, 1024, 128),
        (200, 72, 40),
        (77, 32, -1),
        (128, 8, 32),
        (4096, 320, 128),
    ],
)
def test_awq(K: int, N: int, group_size: int, dtype: torch.dtype) -> None:
    w = random_weight(K, N, 4, group_size, dtype)
    words, scales, zeros = awq_tensors(w)
    made = ops.awq_dequantize(words, scales, zeros, 0, 0, 0)
    assert made.dtype == dtype
    assert_weight(made, w.exact, "dequantized")
    whole = N % 32 == 0 and (group_size == -1 or group_size % 32 == 0)
    for M in ROWS:
        x = activations(M, K, dtype)
        out = ops.awq_gemm(x.cuda(), words, scales, zeros, 8)
        assert_product(out, x, w.exact, M > FEW_ROWS or not whole, M)


# ---- every division of the work ----------------------------------------------------------------


DIVISIONS = [(c, k, s) for c in (1, 2, 4, 8) for k in (1, 2, 4, 8, 16) for s in (1, 2, 8)]


@pytest.mark.parametrize("M", [1, 13, 40])
def test_divisions(M: int) -> None:
    K, N = 1056, 416
    w = random_weight(K, N, 4, 96, BFLOAT)
    x = activations(M, K, BFLOAT)
    words = w.qweight().cuda()
    ops.gptq_shuffle(words, torch.empty(0, dtype=torch.int32, device="cuda"), 4)
    args = (x.cuda(), words, w.scales.cuda(), w.qzeros(True).cuda(), 4, 8, 96)
    awq = (x.cuda(), *awq_tensors(w), 64)
    for division in DIVISIONS:
        if division[0] * division[1] > 16:
            continue
        out = torch.ops.qcore_cuda.wna16_small_m(*args, *division)
        assert_product(out, x, w.exact, False, division)
        out = torch.ops.qcore_cuda.awq_gemm_divided(*awq, *division)
        assert_product(out, x, w.exact, False, ("awq", division))


# ---- activations, streams, graphs --------------------------------------------------------------


def small_layer(dtype: torch.dtype = BFLOAT) -> tuple[Weight, Any, Any]:
    w = random_weight(256, 128, 4, 64, dtype)
    gptq_args = (w.qweight().cuda(), w.qzeros(False).cuda(), w.scales.cuda(), None, False, False, 4)
    return w, gptq_args, (*awq_tensors(w), 8)


@pytest.mark.parametrize("M", [3, 16, 100])
def test_activations_of_any_layout(M: int) -> None:
    w, gptq_args, awq_args = small_layer()
    x = activations(M, 256, BFLOAT)
    wide = torch.zeros(M, 600, dtype=BFLOAT, device="cuda")
    wide[:, 3:259] = x.cuda()  # not aligned
    wide[:, 300:556] = x.cuda()
    flat = torch.zeros(M * 256 + 1, dtype=BFLOAT, device="cuda")
    flat[1:] = x.cuda().reshape(-1)
    layouts = {
        "unaligned column": wide[:, 3:259],
        "strided": wide[:, 300:556],
        "transposed": x.t().contiguous().cuda().t(),
        "unaligned rows": flat[1:].view(M, 256),
        "shaped": x.cuda().view(1, M, 256),
    }
    for name, given in layouts.items():
        for out in (ops.gptq_gemm(given, *gptq_args), ops.awq_gemm(given, *awq_args)):
            assert out.shape == (*given.shape[:-1], 128)
            assert_product(out.reshape(M, 128), x, w.exact, M > FEW_ROWS, name)
    out = ops.gptq_gemm(x[0].cuda(), *gptq_args)
    assert_product(out[None], x[:1], w.exact, False, "a vector")


def test_unaligned_weights() -> None:
    w, gptq_args, awq_args = small_layer()
    x = activations(5, 256, BFLOAT)

    def moved(t: Tensor) -> Tensor:
        room = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")
        room[1:] = t.reshape(-1)
        return room[1:].view(t.shape)

    for rows in (x, activations(80, 256, BFLOAT)):
        args: Any = tuple(moved(t) if isinstance(t, Tensor) else t for t in gptq_args)
        assert_product(ops.gptq_gemm(rows.cuda(), *args), rows, w.exact, len(rows) > 64, "gptq")
        args = tuple(moved(t) if isinstance(t, Tensor) else t for t in awq_args)
        assert_product(ops.awq_gemm(rows.cuda(), *args), rows, w.exact, len(rows) > 64, "awq")


@pytest.mark.parametrize("M", [4, 100])
def test_graph_stream_and_repetition(M: int) -> None:
    w, gptq_args, awq_args = small_layer()
    x = activations(M, 256, BFLOAT)
    static = torch.zeros_like(x, device="cuda")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(2):
            ops.gptq_gemm(static, *gptq_args), ops.awq_gemm(static, *awq_args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = ops.gptq_gemm(static, *gptq_args), ops.awq_gemm(static, *awq_args)
    static.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    first = [out.clone() for out in outs]
    for out in outs:
        assert_product(out, x, w.exact, M > FEW_ROWS, "graph")
    for _ in range(5):
        graph.replay()
        torch.cuda.synchronize()
        for out, before in zip(outs, first, strict=True):
            assert torch.equal(out, before)


@pytest.mark.parametrize("M", [4, 100])
def test_compiled(M: int) -> None:
    w, gptq_args, awq_args = small_layer(HALF)

    @torch.compile(fullgraph=True)
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.gptq_gemm(x, *gptq_args) * 1, ops.awq_gemm(x, *awq_args) * 1

    x = activations(M, 256, HALF)
    for out in run(x.cuda()):
        assert_product(out, x, w.exact, M > FEW_ROWS, "compiled")


def test_opcheck() -> None:
    _, gptq_args, awq_args = small_layer()
    x = activations(4, 256, BFLOAT).cuda()
    words, zeros, scales = gptq_args[:3]
    q = torch.ops.qcore_cuda
    perm = torch.randperm(256, device="cuda").int()
    torch.library.opcheck(q.gptq_shuffle.default, (words.clone(), perm, 4))
    torch.library.opcheck(q.gptq_gemm.default, (x, *gptq_args))
    torch.library.opcheck(q.gptq_dequantize.default, (words, zeros, scales, None, False, False, 4))
    torch.library.opcheck(q.awq_gemm.default, (x, *awq_args))
    torch.library.opcheck(q.awq_dequantize.default, (*awq_args[:3], 0, 0, 0))
    torch.library.opcheck(q.gptq_marlin_repack.default, (words, 256, 128, 4, False))
    torch.library.opcheck(q.awq_marlin_repack.default, (awq_args[0], 256, 128, 4, False))


def test_refusals() -> None:
    _, gptq_args, awq_args = small_layer()
    x = activations(4, 256, BFLOAT).cuda()
    words, zeros, scales = gptq_args[:3]

    def refused(message: str, *args: Any) -> None:
        with pytest.raises(RuntimeError, match=message):
            ops.gptq_gemm(*args)

    refused("a is Float", x.float(), *gptq_args)
    refused("b_q_weight has shape", x[:, :128], *gptq_args)
    refused("bit is 5", x, words, zeros, scales, None, False, False, 5)
    refused("b_gptq_qzeros has shape", x, words, zeros[:2], scales, None, False, False, 4)
    refused(
        "b_g_idx has shape", x, words, zeros, scales, torch.zeros(3).int().cuda(), True, False, 4
    )
    refused("equal", x, words, zeros[:3], scales[:3], None, False, False, 4)
    refused("not on a CUDA device|is on", x, words.cpu(), zeros, scales, None, False, False, 4)
    with pytest.raises(RuntimeError, match="_in_feats has shape"):
        ops.awq_gemm(x[:, :128], *awq_args)
