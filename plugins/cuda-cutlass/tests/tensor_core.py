"""The sums of Hopper's tensor cores, of products of 8-bit floats, computed in float64.

An accumulator and 32 products are aligned with the largest of these 33 numbers, by the exponents
of the accumulator and of the products' factors, and cut off (toward zero) 13 bits below its first
bit; then they are added. That is what the DeepSeek-V3 report (arXiv 2412.19437, 3.5.2) says of it,
and with exactly this reading `sums` gave, to the last bit, what an H200 had computed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["BITS", "chain_sums", "chains", "sums"]

BITS = 13
_AT_A_TIME = 32
_NOTHING = -(1 << 20)  # the exponent of zero: below all others


def _exponent(v: torch.Tensor) -> torch.Tensor:
    return (torch.frexp(v)[1] - 1).masked_fill(v == 0, _NOTHING)


def _chain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b.T`` of float64 [M, K] and [N, K], summed in order."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    of_a, of_b = _exponent(a), _exponent(b)
    for at in range(0, a.shape[1], _AT_A_TIME):
        part = slice(at, at + _AT_A_TIME)
        products = a[:, None, part] * b[None, :, part]
        largest = (of_a[:, None, part] + of_b[None, :, part]).amax(-1)
        largest = torch.maximum(largest, _exponent(total)).clamp_min(-1000)
        unit = torch.ldexp(torch.ones_like(total), largest - BITS)
        total = (torch.trunc(products / unit[..., None]).sum(-1) + torch.trunc(total / unit)) * unit
    return total


def chains(path: str, K: int, N: int = 1, processors: int = 132) -> list[torch.Tensor]:
    """The elements of K that a path sums up one after another; the chains' sums are float32."""
    places = torch.arange(K)
    pieces = list(places.split(128))
    if path.endswith("_promoted"):
        return pieces
    if path == "sm90_64":
        return [torch.cat(pieces[g::2]) for g in range(2) if pieces[g::2]]
    if path == "sm90_columns":
        # A block's four warpgroups share K if one or two of them are enough for its columns.
        rounds = -(-N // (processors * 256))
        columns = -(-N // (rounds * processors))
        shares = 4 if columns <= 64 else 2 if columns <= 128 else 1
        return [torch.cat(pieces[g::shares]) for g in range(shares) if pieces[g::shares]]
    return [places]


def chain_sums(a: torch.Tensor, b: torch.Tensor, parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """``a @ b`` of 8-bit floats [M, K] and [K, N] by chains of K: float64 [chains, M, N]."""
    wide_a, wide_b = a.double(), b.double().t()
    return torch.stack([_chain(wide_a[:, part], wide_b[:, part]) for part in parts])


def sums(a: torch.Tensor, b: torch.Tensor, parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """``a @ b``, the chains added up in float64."""
    return chain_sums(a, b, parts).sum(0)
