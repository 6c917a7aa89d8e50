"""Marlin's layout and product on a GPU, against a permutation written in numpy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from marlin_oracle import E2M1, SINGLE, columns, marlin, marlin_zeros, scale_order
from qcore.facts.scalar_type import scalar_types
from qcore_cuda import ops
from w4_oracle import Array, activations, assert_product, random_weight, write_awq, write_bits

pytestmark = pytest.mark.gpu

Tensor = torch.Tensor


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("a_8bit", [False, True])
@pytest.mark.parametrize(("K", "N"), [(32, 64), (96, 192), (256, 1088)])
def test_repack(K: int, N: int, bits: int, a_8bit: bool) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (K, N))
    expected = marlin(codes, bits, a_8bit)
    out = ops.gptq_marlin_repack(write_bits(codes, bits, 0).cuda(), K, N, bits, a_8bit)
    assert torch.equal(out.cpu(), expected)
    if bits == 4:
        words = write_awq(codes)
    else:
        words = write_bits(codes.reshape(K, -1, 4)[:, :, (0, 2, 1, 3)].reshape(K, N), 8, 1)
    out = ops.awq_marlin_repack(words.cuda(), K, N, bits, a_8bit)
    assert torch.equal(out.cpu(), expected)


def gemm(
    x: Tensor,
    codes: Array,
    scales: Tensor,
    type_name: str,
    *,
    zeros: Tensor | None = None,
    global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    K, N = codes.shape
    weight_type = getattr(scalar_types, type_name)
    return ops.marlin_gemm(
        x.cuda(),
        out,
        marlin(codes, weight_type.size_bits).cuda(),
        None if bias is None else columns(bias[None], SINGLE)[0].cuda(),
        scales.cuda(),
        None,
        None if global_scale is None else global_scale.cuda(),
        None if zeros is None else zeros.cuda(),
        torch.zeros(132, dtype=torch.int32, device="cuda"),
        weight_type.id,
        len(x),
        N,
        K,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("type_name", ["uint4", "uint4b8", "uint8", "uint8b128"])
@pytest.mark.parametrize("group_size", [-1, 32, 128])
def test_integers(type_name: str, group_size: int, dtype: torch.dtype) -> None:
    K, N = 256, 192
    bits = 8 if "8" in type_name.split("b")[0] else 4
    w = random_weight(K, N, bits, group_size, dtype)
    zeros = None if "b" in type_name else marlin_zeros(w.zeros, bits)
    if zeros is None:
        w.zeros[:] = 1 << (bits - 1)
    bias = torch.randn(N).to(dtype)
    for M in (0, 1, 17, 100):
        x = activations(M, K, dtype)
        out = gemm(x, w.codes, scale_order(w.scales), type_name, zeros=zeros)
        assert_product(out, x, w.exact, True, M)
        given = torch.empty(M, N, dtype=dtype, device="cuda")
        with_bias = gemm(
            x, w.codes, scale_order(w.scales), type_name, zeros=zeros, bias=bias, out=given
        )
        assert with_bias.data_ptr() == given.data_ptr()
        off = (given.float() - out.float() - bias.cuda().float()).abs()
        unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
        assert (off <= unit * (given.float().abs() + out.float().abs()) + 2.0**-24).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("type_name", ["uint4", "uint4b8", "uint8", "uint8b128"])
@pytest.mark.parametrize("group_size", [-1, 16, 128])
def test_dequantize(type_name: str, group_size: int, dtype: torch.dtype) -> None:
    K, N = 384, 320
    bits = 8 if "8" in type_name.split("b")[0] else 4
    w = random_weight(K, N, bits, group_size, dtype)
    zeros = None if "b" in type_name else marlin_zeros(w.zeros, bits).cuda()
    if zeros is None:
        w.zeros[:] = 1 << (bits - 1)
    args = (marlin(w.codes, bits).cuda(), scale_order(w.scales).cuda(), zeros, None)
    args += (getattr(scalar_types, type_name).id, K, N, dtype)
    assert torch.equal(ops.marlin_dequantize(*args).cpu(), w.exact.to(dtype).cpu())
    torch.library.opcheck(torch.ops.qcore_cuda.marlin_dequantize.default, args)
    with pytest.raises(RuntimeError, match="size_n is 100"):
        ops.marlin_dequantize(*args[:6], 100, dtype)
    with pytest.raises(RuntimeError, match="dtype is Float"):
        ops.marlin_dequantize(*args[:7], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["fp8 channel", "fp8 block", "nvfp4", "mxfp4", "mxfp8"])
def test_floats(kind: str, dtype: torch.dtype) -> None:
    K, N, M = 256, 128, 20
    random = np.random.default_rng(3)
    small = kind in ("nvfp4", "mxfp4")
    codes = random.integers(0, 16 if small else 256, (K, N))
    if small:
        values = torch.from_numpy(E2M1[codes])
    else:
        codes[codes % 128 == 127] = 0  # NaN
        values = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn).double()
    global_scale = None
    size = {"fp8 channel": K, "fp8 block": 128, "nvfp4": 16}.get(kind, 32)
    G = K // size
    if kind == "nvfp4":
        scales = torch.from_numpy(random.uniform(0.1, 4, (G, N))).to(torch.float8_e4m3fn)
        global_scale = torch.tensor([0.0037])
    elif kind.startswith("mx"):
        exponents = torch.from_numpy(random.integers(115, 125, (G, N)).astype(np.uint8))
        scales = exponents.view(torch.float8_e8m0fnu)
    else:
        scales = torch.from_numpy(random.uniform(1e-3, 1e-2, (G, N))).to(dtype)
    wide = scales.double() if scales.element_size() > 1 else scales.float().double()
    weight = values * wide.repeat_interleave(size, 0)
    if global_scale is not None:
        weight = weight * global_scale.double()
    raw = scales.view(torch.uint8) if scales.element_size() == 1 else scales
    ordered = scale_order(raw).view(scales.dtype)
    x = activations(M, K, dtype)
    name = "float4_e2m1f" if small else "float8_e4m3fn"
    out = gemm(x, codes, ordered, name, global_scale=global_scale)
    bits, of_all = 4 if small else 8, None if global_scale is None else global_scale.cuda()
    args = (marlin(codes, bits).cuda(), ordered.cuda(), None, of_all)
    whole = ops.marlin_dequantize(*args, getattr(scalar_types, name).id, K, N, dtype).cpu()
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    off = (whole.double() - weight).abs()
    assert (off <= unit * weight.abs() + 2.0**-25).all()
    assert_product(out, x, weight, True, kind)


def test_refusals() -> None:
    w = random_weight(64, 64, 4, -1, torch.float16)
    x = activations(2, 64, torch.float16)
    scales = scale_order(w.scales)
    with pytest.raises(RuntimeError, match="b_zeros_or_none is not given"):
        gemm(x, w.codes, scales, "uint4")
    with pytest.raises(RuntimeError, match="b_type_id"):
        gemm(x, w.codes, scales, "int4")
    with pytest.raises(RuntimeError, match="a_scales are not given"):
        gemm(x.to(torch.int8), w.codes, scales, "uint4b8")
