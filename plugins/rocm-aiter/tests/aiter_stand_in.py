"""A module in place of ``aiter``: it asserts what AITER's functions do, and computes in float64.

What is asserted is in AITER's own code (``aiter/ops/gemm_op_a8w8.py``, ``csrc/ck_gemm_a8w8*``,
``gradlib/csrc/hipbsolgemm.cu``, ``aiter/ops/gemm_op_a4w4.py``, ``asm_gemm_a4w4.cu``): contiguous
operands of the device's types, float32 scales, 16-bit results, no bias where weights are
pre-shuffled; of ``hipb_mm`` a handle, and scales that are one each or by row; of ``gemm_a4w4``
padded scales and bfloat16.
"""

from __future__ import annotations

from types import ModuleType
from typing import Optional

import numpy as np
import torch
from aiter_layouts import scale_words

__all__ = ["stand_in_module"]

Tensor = torch.Tensor
bf16 = torch.bfloat16


def _check(XQ: Tensor, WQ: Tensor, x_scale: Tensor, w_scale: Tensor, dtype: torch.dtype) -> None:
    assert XQ.dtype == WQ.dtype
    assert XQ.is_contiguous()
    assert WQ.is_contiguous()
    assert XQ.shape[1] == WQ.shape[1]
    assert XQ.shape[1] % 16 == 0
    assert WQ.shape[0] % 16 == 0
    assert x_scale.dtype == w_scale.dtype == torch.float32
    assert x_scale.is_contiguous()
    assert w_scale.is_contiguous()
    assert dtype in (torch.float16, bf16)


def _scaled(XQ: Tensor, WQ: Tensor, x_scale: Tensor, w_scale: Tensor) -> Tensor:
    M, N = XQ.shape[0], WQ.shape[0]
    if x_scale.numel() == 1 and w_scale.numel() == 1 and (x_scale.dim(), w_scale.dim()) == (1, 1):
        scale = x_scale.double() * w_scale.double()
    else:
        assert x_scale.shape == (M, 1)
        assert w_scale.shape == (N, 1)
        scale = x_scale.double() * w_scale.double().t()
    return XQ.double() @ WQ.double().t() * scale


def gemm_a8w8_CK(  # noqa: N802
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Optional[Tensor] = None,  # noqa: UP045
    dtype: torch.dtype = bf16,
    splitK: Optional[int] = None,  # noqa: UP045
) -> Tensor:
    _check(XQ, WQ, x_scale, w_scale, dtype)
    assert XQ.dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e4m3fnuz)
    out = _scaled(XQ, WQ, x_scale, w_scale)
    if bias is not None:
        assert bias.dtype == dtype
        assert bias.shape == (WQ.shape[0],)
        out = out + bias.double()
    return out.to(dtype)


def gemm_a8w8_bpreshuffle(
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Optional[Tensor] = None,  # noqa: UP045
    dtype: torch.dtype = bf16,
    check: bool = False,
) -> Tensor:
    _check(XQ, WQ, x_scale, w_scale, dtype)
    assert XQ.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
    assert bias is None, "gemm_a8w8_bpreshuffle does not support bias now"
    return _scaled(XQ, _in_order(WQ), x_scale, w_scale).to(dtype)


def _in_order(shuffled: Tensor) -> Tensor:
    """Where each byte of a lane's 16 came from, one at a time."""
    N, K = shuffled.shape
    assert K % 32 == 0
    flat = shuffled.view(torch.uint8).flatten()
    at = torch.arange(N * K)
    piece, byte = at // 16, at % 16
    lane, half = piece % 16, piece // 16 % 2
    tile = piece // 32
    n = tile // (K // 32) * 16 + lane
    k = tile % (K // 32) * 32 + half * 16 + byte
    plain = torch.empty((N, K), dtype=torch.uint8)
    plain[n, k] = flat
    return plain.view(shuffled.dtype)


def gemm_a8w8_blockscale(
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype = bf16,
    isBpreshuffled: bool = False,
) -> Tensor:
    _check(XQ, WQ, x_scale, w_scale, dtype)
    assert not isBpreshuffled
    (M, K), N = XQ.shape, WQ.shape[0]
    assert K % 128 == 0
    assert x_scale.shape == (M, K // 128)
    assert w_scale.shape == (-(-N // 128), K // 128)
    left = XQ.double() * x_scale.double().repeat_interleave(128, 1)
    spread = w_scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)
    return (left @ (WQ.double() * spread).t()).to(dtype)


_handles = 0


def hipb_create_extension() -> None:
    global _handles
    _handles += 1


def hipb_mm(
    mat1: Tensor,
    mat2: Tensor,
    solution_index: int,
    bias: Optional[Tensor] = None,  # noqa: UP045
    out_dtype: Optional[torch.dtype] = None,  # noqa: UP045
    scaleA: Optional[Tensor] = None,  # noqa: UP045
    scaleB: Optional[Tensor] = None,  # noqa: UP045
    scaleOut: Optional[Tensor] = None,  # noqa: UP045
    bpreshuffle: Optional[bool] = None,  # noqa: UP045
) -> Tensor:
    assert _handles == 1
    assert solution_index == -1  # chosen by hipBLASLt
    assert scaleOut is None
    assert mat1.dtype == mat2.dtype
    assert mat1.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
    (M, K), N = mat1.shape, mat2.shape[1]
    assert mat2.shape[0] == K
    assert mat1.is_contiguous()
    assert mat2.stride() == (1, K)
    weight = mat2.t()
    if bpreshuffle:
        assert mat1.dtype == torch.float8_e4m3fnuz
        assert (N % 16, K % 64) == (0, 0)
        weight = _in_order(weight)
    assert scaleA is not None
    assert scaleB is not None
    assert scaleA.dtype == scaleB.dtype == torch.float32
    assert scaleA.is_contiguous()
    assert scaleB.is_contiguous()
    if scaleA.numel() == scaleB.numel() == 1:
        assert out_dtype in (torch.float16, bf16)
        scale = scaleA.double().reshape(1, 1) * scaleB.double().reshape(1, 1)
    else:
        assert scaleA.shape == (M, 1)
        assert scaleB.shape == (1, N)
        assert out_dtype == bf16
        assert (N % 16, K % 16) == (0, 0)
        scale = scaleA.double() * scaleB.double()
    out = mat1.double() @ weight.double().t() * scale
    if bias is not None:
        assert bias.dtype == out_dtype
        assert bias.shape == (N,)
        out = out + bias.double()
    return out.to(out_dtype)


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _mxfp4(codes: Tensor, scale: Tensor) -> Tensor:
    """Values [rows, K] of packed codes and of scales in the GPU's order."""
    bits = codes.view(torch.uint8)
    rows, K = bits.shape[0], bits.shape[1] * 2
    assert scale.shape == (-(-rows // 256) * 256, -(-(K // 32) // 8) * 8)
    # Where each scale went: shuffle the places, then put what is there back.
    places = np.arange(scale.numel()).reshape(tuple(scale.shape))
    plain = torch.empty(scale.numel(), dtype=torch.uint8)
    plain[torch.from_numpy(scale_words(places))] = scale.view(torch.uint8).flatten()
    powers = plain.reshape(scale.shape)[:rows, : K // 32]
    numbers = torch.stack((bits & 15, bits >> 4), -1).flatten(1).long()
    table = torch.tensor((*_E2M1, *(-x for x in _E2M1)), dtype=torch.float64)
    real = torch.where(powers == 255, torch.nan, 2.0 ** (powers.double() - 127))
    return table[numbers] * real.repeat_interleave(32, 1)


def _a4w4(A: Tensor, B: Tensor, A_scale: Tensor, B_scale: Tensor) -> Tensor:
    assert A.dtype == B.dtype == torch.float4_e2m1fn_x2
    assert A_scale.dtype == B_scale.dtype == torch.float8_e8m0fnu
    for tensor in (A, B, A_scale, B_scale):
        assert tensor.is_contiguous()
    assert A.shape[1] == B.shape[1]
    assert (B.shape[0] % 32, B.shape[1] % 128) == (0, 0)
    return _mxfp4(A, A_scale) @ _mxfp4(_in_order(B.view(torch.uint8)), B_scale).t()


def gemm_a4w4(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    out: Tensor,
    bias: Optional[Tensor] = None,  # noqa: UP045
    alpha: Optional[float] = 1.0,  # noqa: UP045
    beta: Optional[float] = 0.0,  # noqa: UP045
    bpreshuffle: Optional[bool] = True,  # noqa: UP045
) -> Tensor:
    """As 0.1.7 has it: into ``out``, whose rows are whole tiles."""
    assert (bias, alpha, beta, bpreshuffle) == (None, 1.0, 0.0, True)
    M, N = A.shape[0], B.shape[0]
    assert out.dtype == bf16
    assert out.shape == (-(-M // 32) * 32, N)
    out.fill_(torch.nan)
    out[:M] = _a4w4(A, B, A_scale, B_scale).to(bf16)
    return out


def newer_gemm_a4w4(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    bias: Optional[Tensor] = None,  # noqa: UP045
    dtype: torch.dtype = bf16,
    alpha: Optional[float] = 1.0,  # noqa: UP045
    beta: Optional[float] = 0.0,  # noqa: UP045
    bpreshuffle: Optional[bool] = True,  # noqa: UP045
    apreshuffle: Optional[bool] = False,  # noqa: UP045
    global_A_scale: Optional[Tensor] = None,  # noqa: UP045
    global_B_scale: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    """As AITER's source has it since: it makes the result."""
    assert (bias, alpha, beta, bpreshuffle, apreshuffle) == (None, 1.0, 0.0, True, False)
    assert global_A_scale is None
    assert global_B_scale is None
    assert dtype == bf16
    return _a4w4(A, B, A_scale, B_scale).to(bf16)


FUNCTIONS = (
    *(gemm_a8w8_CK, gemm_a8w8_bpreshuffle, gemm_a8w8_blockscale),
    *(hipb_create_extension, hipb_mm, gemm_a4w4),
)


def stand_in_module(newer: bool = False) -> ModuleType:
    """The module, to be put where ``import aiter`` finds it; or as newer than the wheel on PyPI."""
    global _handles
    _handles = 0
    module = ModuleType("aiter")
    for function in FUNCTIONS:
        setattr(module, function.__name__, function)
    if newer:
        module.gemm_a4w4 = newer_gemm_a4w4  # type: ignore[attr-defined]
    return module
