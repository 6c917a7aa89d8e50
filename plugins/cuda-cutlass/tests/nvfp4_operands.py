"""What a product of NVFP4 with NVFP4 is, in float64, from operands as tensor cores read them."""

from __future__ import annotations

import torch

__all__ = ["nvfp4_product", "nvfp4_values"]

_HALF = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_E2M1 = torch.tensor([*_HALF, *(-value for value in _HALF)], dtype=torch.float64)


def nvfp4_values(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """uint8 [M, K/2] and scales in tiles of 128 x 4, each looked up by its place: float64 [M, K]."""
    M, groups = codes.shape[0], codes.shape[1] // 8
    flat, wide = scale.contiguous().reshape(-1), -(-groups // 4)
    assert flat.dtype == torch.uint8
    assert flat.numel() == -(-M // 128) * wide * 512
    m, k = torch.arange(M)[:, None], torch.arange(groups)[None, :]
    tile = (m // 128) * wide + k // 4
    found = flat[tile * 512 + (m % 32) * 16 + (m % 128) // 32 * 4 + k % 4]
    values = _E2M1[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]
    return values * found.view(torch.float8_e4m3fn).double().repeat_interleave(16, 1)


def nvfp4_product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor,
) -> torch.Tensor:
    """``alpha * a @ b.T``, float64 [M, N]; arguments as the products ask for them."""
    for tensor in (a, b):
        assert tensor.dtype == torch.uint8
        assert tensor.is_contiguous()
    assert a.shape[1] == b.shape[1]
    assert a.shape[1] % 16 == 0
    assert alpha.dtype == torch.float32
    assert alpha.numel() == 1
    return (nvfp4_values(a, a_scale) @ nvfp4_values(b, b_scale).t()) * alpha.double()
