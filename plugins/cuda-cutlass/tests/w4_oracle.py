"""Weight-only layouts, written down bit by bit in numpy; float64 results and what may differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Tensor = torch.Tensor
Array = np.ndarray

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def write_bits(codes: Array, bits: int, axis: int) -> Tensor:
    """Codes to int32 words without gaps, lowest bits first: by way of single bits."""
    moved = np.moveaxis(codes, axis, -1).astype(np.uint8)
    single = (moved[..., None] >> np.arange(bits)) & 1
    stream = single.reshape(*moved.shape[:-1], -1)
    assert stream.shape[-1] % 32 == 0
    packed = np.packbits(stream.astype(np.uint8), axis=-1, bitorder="little")
    words = np.ascontiguousarray(packed).view("<u4").view(np.int32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words, -1, axis)))


def write_awq(codes: Array) -> Tensor:
    """AWQ's words: nibble i of word j is column 8j + AWQ_COLUMNS[i]."""
    rows, columns = codes.shape
    return write_bits(codes.reshape(rows, -1, 8)[:, :, AWQ_COLUMNS].reshape(rows, columns), 4, 1)


@dataclass
class Weight:
    """Codes [K, N], zero points and scales [G, N], the group of each input."""

    codes: Array
    zeros: Array
    scales: Tensor
    groups: Array
    bits: int

    @property
    def exact(self) -> Tensor:
        """float64 [K, N]."""
        zeros = torch.from_numpy(self.zeros.astype(np.float64))[self.groups]
        return (torch.from_numpy(self.codes.astype(np.float64)) - zeros) * self.scales.double()[
            self.groups
        ]

    def qweight(self) -> Tensor:
        """GPTQ's."""
        return write_bits(self.codes, self.bits, 0)

    def qzeros(self, v2: bool) -> Tensor:
        """GPTQ's. Version 1 takes 1 off the words where codes do not cross them."""
        if v2:
            return write_bits(self.zeros, self.bits, 1)
        if self.bits == 3:
            return write_bits((self.zeros + 7) % 8, 3, 1)
        ones = sum(1 << i for i in range(0, 32, self.bits))
        stored = write_bits(self.zeros, self.bits, 1).numpy().view(np.uint32)
        return torch.from_numpy((stored - np.uint32(ones)).view(np.int32))


def random_weight(
    K: int,
    N: int,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
    seed: int = 0,
    groups: Array | None = None,
) -> Weight:
    """Codes of the whole range; zero points too, with 0 and the greatest among them."""
    random = np.random.default_rng(seed)
    size = K if group_size == -1 else group_size
    G = -(-K // size)
    zeros = random.integers(0, 1 << bits, (G, N))
    zeros[0, :2] = 0, (1 << bits) - 1
    scales = torch.from_numpy(random.uniform(-0.02, 0.02, (G, N))).to(dtype)
    if groups is None:
        groups = np.arange(K) // size
    return Weight(random.integers(0, 1 << bits, (K, N)), zeros, scales, groups, bits)


def activations(M: int, K: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(M, K, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_product(out: Tensor, x: Tensor, weight: Tensor, rounded: bool, where: object) -> None:
    """``out`` is ``x @ weight`` but for rounding.

    Args:
        out: the result.
        x: 16-bit activations.
        weight: float64 [K, N].
        rounded: whether weights were rounded to x's dtype. The sum of those errors exceeds eight
            standard deviations with a probability of 2 exp(-32).
        where: for the message.
    """
    weight_unit = 2.0**-8 if x.dtype == torch.bfloat16 else 2.0**-11
    x, out, K = x.cpu().double(), out.cpu(), weight.shape[0]
    exact = x @ weight
    allowed = (K + 16) * 2.0**-23 * (x.abs() @ weight.abs())
    if rounded:
        allowed += 8 * weight_unit * ((x**2) @ (weight**2)).sqrt() + 2.0**-24 * x.abs().sum(
            -1, True
        )
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(out.dtype, 2.0**-24)
    allowed += unit * (exact.abs() + allowed) + 2.0**-24
    assert out.shape == exact.shape, (where, out.shape)
    assert out.isfinite().all(), (where, "not finite")
    error = (out.double() - exact).abs()
    assert (error <= allowed).all(), (where, float((error / allowed).max()))


def assert_weight(out: Tensor, weight: Tensor, where: object) -> None:
    """``out`` is ``weight``, rounded once (from a float32 product)."""
    unit = 2.0**-8 if out.dtype == torch.bfloat16 else 2.0**-11
    error = (out.cpu().double() - weight).abs()
    allowed = weight.abs() * unit * 1.001 + (2.0**-25 if out.dtype == torch.float16 else 0.0)
    assert out.shape == weight.shape, (where, out.shape)
    assert (error <= allowed).all(), (where, float((error - allowed).max()))
