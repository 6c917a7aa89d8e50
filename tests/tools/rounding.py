"""How inputs are rounded, from the formats' definitions, in plain PyTorch."""

from __future__ import annotations

import torch


def fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A known scale, or several that broadcast."""
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def nvfp4(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Blocks of 16 with an e4m3 scale: amax / 6 over the second scale."""
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    inner = (blocks.abs().amax(-1, keepdim=True) / (6 * scale)).clamp(max=448)
    wide = inner.to(torch.float8_e4m3fn).float() * scale
    return (e2m1(blocks / wide) * wide).reshape(x.shape)


def mxfp8(x: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 with a power of two, so that none is larger than 448."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = torch.exp2(torch.ceil(torch.log2(blocks.abs().amax(-1, keepdim=True) / 448)))
    return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).reshape(x.shape)


def mxfp4(x: torch.Tensor, top: float = 6) -> torch.Tensor:
    """Blocks of 32 with a power of two, so that none is larger than ``top``; then to 6 at most.

    ModelOpt has 6, compressed-tensors 7: up to there the next power of two would lose more.
    """
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = torch.exp2(torch.ceil(torch.log2(blocks.abs().amax(-1, keepdim=True) / top)))
    return (e2m1(blocks / scale) * scale).reshape(x.shape)


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """The nearest value, the even code at a tie."""
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    distance = (x.abs()[..., None] - values).abs()
    odd = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]) * 1e-7
    return values[(distance + odd).argmin(-1)] * x.sign()
