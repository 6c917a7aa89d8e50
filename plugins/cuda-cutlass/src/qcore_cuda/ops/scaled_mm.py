"""Products of 8-bit matrices, scaled: ``out = (a * a_scales) @ (b * b_scales) + bias``."""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake, fake_nothing

__all__ = ["cutlass_scaled_mm", "cutlass_scaled_mm_azp", "scaled_mm_by", "scaled_mm_paths"]

Tensor = torch.Tensor


def cutlass_scaled_mm(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """``(a * scale_a) @ (b * scale_b) + bias``.

    Args:
        a: int8 or float8_e4m3fn [M, K], row-major, rows a multiple of 16 bytes apart.
        b: the same dtype [K, N], column-major, K a multiple of 16.
        scale_a: float32 of 1 or M elements; by block [M, ceil(K / 128)], of any strides.
        scale_b: float32 of 1 or N elements; by block [ceil(K / 128), ceil(N / 128)]. Blocks are for
            FP8.
        out_dtype: float16 or bfloat16.
        bias: [N] of ``out_dtype``.

    Returns:
        [M, N] of ``out_dtype``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    library.load()
    return torch.ops.qcore_cuda.cutlass_scaled_mm.new(  # type: ignore[no-any-return]
        a, b, scale_a, scale_b, out_dtype, bias
    )


def cutlass_scaled_mm_azp(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    out_dtype: torch.dtype,
    azp_adj: Tensor,
    azp: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``scale_a * scale_b * (a @ b - azp * azp_adj) + bias``, the integers exact.

    Args:
        a: int8 [M, K], as in `cutlass_scaled_mm`.
        b: int8 [K, N].
        scale_a: float32 of 1 or M elements.
        scale_b: float32 of 1 or N elements.
        out_dtype: float16 or bfloat16.
        azp_adj: int32 [N], the sums of b's columns; where ``azp`` is None, times the zero point.
        azp: int32 of 1 or M elements: the zero points of ``a``.
        bias: [N] of ``out_dtype``.

    Returns:
        [M, N] of ``out_dtype``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    library.load()
    return torch.ops.qcore_cuda.cutlass_scaled_mm_azp.new(  # type: ignore[no-any-return]
        a, b, scale_a, scale_b, out_dtype, azp_adj, azp, bias
    )


def scaled_mm_paths() -> tuple[str, ...]:
    """The kernels that `scaled_mm_by` can be told to run."""
    library.load()
    return tuple(torch.ops.qcore_cuda.scaled_mm_paths().split(","))


def scaled_mm_by(
    path: str,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    out_dtype: torch.dtype,
    *,
    azp_adj: Tensor | None = None,
    azp: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A scaled product by the kernel named ``path``, for tests and measurements.

    Raises:
        RuntimeError: there is no such path, or it does not take this problem.
    """
    library.load()
    out = torch.empty((a.shape[0], b.shape[1]), dtype=out_dtype, device=a.device)
    torch.ops.qcore_cuda.scaled_mm_by(out, a, b, scale_a, scale_b, azp_adj, azp, bias, path)
    return out


fake_nothing("cutlass_scaled_mm", "cutlass_scaled_mm_azp", "scaled_mm_by")


@fake("cutlass_scaled_mm.new")
def _scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)


@fake("cutlass_scaled_mm_azp.new")
def _scaled_mm_azp(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    out_dtype: torch.dtype,
    azp_adj: Tensor,
    azp: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)
