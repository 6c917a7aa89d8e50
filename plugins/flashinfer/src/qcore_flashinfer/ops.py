"""Custom ops around FlashInfer's functions, so that layers can be traced and compiled.

Codes travel as bytes: torch copies and compares those on every device.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from qcore_flashinfer import library

__all__ = ["capability_of", "fp4_mm", "fp8_backend", "fp8_block_mm", "fp8_mm", "mxfp8_mm"]

E4M3 = torch.float8_e4m3fn


def _call(name: str, *args: torch.Tensor, **keywords: object) -> torch.Tensor:
    found = library.function(name)
    if found is None:
        raise RuntimeError(library.fault() or f"flashinfer-python has no {name}")
    result: torch.Tensor = found(*args, **keywords)
    return result


def _out(a: torch.Tensor, N: int, out_dtype: torch.dtype) -> torch.Tensor:
    return a.new_empty((a.shape[0], N), dtype=out_dtype)


@lru_cache
def capability_of(device: torch.device) -> int | None:
    """103 for sm_103; None for what is no GPU."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def fp8_backend(capability: int | None) -> str:
    """The backend of ``bmm_fp8``: CUTLASS's where FlashInfer has one for such a GPU."""
    if library.backend_refusal("bmm_fp8", "cutlass", capability) is None:
        return "cutlass"
    return "cublas"


@torch.library.custom_op("qcore_flashinfer::fp8_mm", mutates_args=())
def fp8_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """``(a * a_scale) @ (b * b_scale).T`` by ``bmm_fp8``: a [M, K], b [N, K], bytes of e4m3."""
    if a.shape[0] == 0:
        return _out(a, b.shape[0], out_dtype)
    left, right = a.view(E4M3).unsqueeze(0), b.view(E4M3).t().unsqueeze(0)
    backend = fp8_backend(capability_of(a.device))
    return _call(
        "bmm_fp8", left, right, a_scale, b_scale, dtype=out_dtype, backend=backend
    ).squeeze(0)


@fp8_mm.register_fake
def _(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return _out(a, b.shape[0], out_dtype)


@torch.library.custom_op("qcore_flashinfer::fp8_block_mm", mutates_args=())
def fp8_block_mm(x: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor) -> torch.Tensor:
    """bfloat16 x [M, K] with b [N, K], bytes of e4m3, in blocks of 128 x 128: bfloat16 [M, N].

    FlashInfer rounds x to e4m3 in groups of 128.
    """
    if x.shape[0] == 0:
        return _out(x, b.shape[0], torch.bfloat16)
    return _call(
        "fp8_blockscale_gemm_sm90",
        x,
        b.view(E4M3),
        weight_scale=b_scale,
        out_dtype=torch.bfloat16,
    )


@fp8_block_mm.register_fake
def _(x: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor) -> torch.Tensor:
    return _out(x, b.shape[0], torch.bfloat16)


@torch.library.custom_op("qcore_flashinfer::fp4_mm", mutates_args=())
def fp4_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor | None,
    out_dtype: torch.dtype,
    block_size: int,
    backend: str,
) -> torch.Tensor:
    """``mm_fp4`` of a [M, K/2] and b [N, K/2]; scales in tiles of 128 x 4, times ``alpha``.

    Blocks of 16 are NVFP4, of 32 MXFP4.
    """
    if a.shape[0] == 0:
        return _out(a, b.shape[0], out_dtype)
    return _call(
        "mm_fp4",
        a,
        b.t(),
        a_scale,
        b_scale.t(),
        alpha=alpha,
        out_dtype=out_dtype,
        block_size=block_size,
        use_8x4_sf_layout=False,
        backend=backend,
        use_nvfp4=block_size == 16,
    )


@fp4_mm.register_fake
def _(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor | None,
    out_dtype: torch.dtype,
    block_size: int,
    backend: str,
) -> torch.Tensor:
    return _out(a, b.shape[0], out_dtype)


@torch.library.custom_op("qcore_flashinfer::mxfp8_mm", mutates_args=())
def mxfp8_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    """``mm_mxfp8`` of a [M, K] and b [N, K], bytes of e4m3; scales in tiles of 128 x 4."""
    if a.shape[0] == 0:
        return _out(a, b.shape[0], out_dtype)
    return _call(
        "mm_mxfp8",
        a.view(E4M3),
        b.view(E4M3).t(),
        a_scale.reshape(-1),
        b_scale.reshape(-1),
        out_dtype=out_dtype,
        use_8x4_sf_layout=False,
        backend=backend,
    )


@mxfp8_mm.register_fake
def _(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    return _out(a, b.shape[0], out_dtype)
