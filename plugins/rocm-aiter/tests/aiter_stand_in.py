"""A module in place of ``aiter``: it asserts what AITER's functions do, and computes in float64.

What is asserted is in AITER's own code (``aiter/ops/gemm_op_a8w8.py``, ``csrc/ck_gemm_a8w8*``):
contiguous operands of the device's types, float32 scales, 16-bit results, no bias where weights are
pre-shuffled.
"""

from __future__ import annotations

from types import ModuleType
from typing import Optional

import torch

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


def stand_in_module() -> ModuleType:
    """The module, to be put where ``import aiter`` finds it."""
    module = ModuleType("aiter")
    for function in (gemm_a8w8_CK, gemm_a8w8_bpreshuffle, gemm_a8w8_blockscale):
        setattr(module, function.__name__, function)
    return module
