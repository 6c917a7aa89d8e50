"""What the ops must compute, in float64, written from the definitions and not from the code."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pack(codes: Tensor, bits: int) -> Tensor:
    """int32 words along the last dimension, lowest bits first."""
    per_word = 32 // bits
    rows = codes.reshape(-1, codes.shape[-1]).tolist()
    words = []
    for row in rows:
        line = []
        for start in range(0, len(row), per_word):
            word = sum(code << (bits * i) for i, code in enumerate(row[start : start + per_word]))
            line.append(word - (1 << 32) if word >= 1 << 31 else word)
        words.append(line)
    return torch.tensor(words, dtype=torch.int32)


@dataclass
class Layer:
    """A random layer with packed integer weights, and its weight in float64."""

    N: int
    K: int
    bits: int
    group_size: int
    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    g_idx: Tensor | None
    zero_bias: int
    weight: Tensor

    @property
    def stored_bits(self) -> int:
        return {3: 4, 7: 8}.get(self.bits, self.bits)

    def kernel_tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """The first arguments of wna16_linear after x."""
        packed, scale, zero, perm, chunks = torch.ops.qcore_cpu.wna16_pack(
            self.packed,
            self.scale,
            self.zero_point,
            self.g_idx,
            self.bits,
            self.zero_bias,
            self.group_size,
            self.K,
        )
        return packed, scale, zero if len(zero) else None, perm if len(perm) else None, chunks

    def arguments(self, bias: Tensor | None = None) -> tuple[object, ...]:
        """All arguments of wna16_linear after x but the last."""
        return (*self.kernel_tensors(), bias, self.stored_bits, self.K, self.N)

    def run(self, x: Tensor, bias: Tensor | None = None, out_dtype: object = None) -> Tensor:
        return torch.ops.qcore_cpu.wna16_linear(x, *self.arguments(bias), out_dtype)


def make_layer(
    N: int,
    K: int,
    bits: int,
    group_size: int,
    zero_points: bool = False,
    g_idx: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    signed: bool = False,
    bias: int | None = None,
) -> Layer:
    size = K if group_size == -1 else group_size
    groups = -(-K // size)
    half = 1 << (bits - 1)
    codes = torch.randint(0, 1 << bits, (N, K))
    scale = (torch.rand(N, groups) * 0.02 + 0.001).to(scale_dtype)
    group_of = torch.arange(K) // size
    if g_idx:
        group_of = group_of[torch.randperm(K)]
    zero_bias = half if bias is None else bias
    zeros = torch.full((N, groups), zero_bias)
    zero_point = None
    if zero_points:
        zeros, zero_bias = torch.randint(0, 1 << bits, (N, groups)), 0
        zero_point = pack(zeros.t(), bits).t().contiguous()
    weight = (codes - zeros[:, group_of]).double() * scale.double()[:, group_of]
    packed = (codes - half).to(torch.int8) if signed else pack(codes, bits)
    table = group_of.to(torch.int32) if g_idx else None
    return Layer(N, K, bits, group_size, packed, scale, zero_point, table, zero_bias, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = x.double() @ weight.t()
    return out if bias is None else out + bias.double()


def assert_close(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Within the rounding of float32 sums, and of the output's dtype.

    The bound is relative to the sum of magnitudes: what float32 accumulation can be held to.
    """
    expected = linear(x, weight, bias)
    magnitude = linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
    unit = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[out.dtype]
    bound = 1e-6 * magnitude + unit * expected.abs() + 1e-7
    error = (out.double() - expected).abs()
    assert out.shape == expected.shape
    assert bool((error <= bound).all()), f"error is {(error / bound).max().item():.3g} x the bound"


def quantize(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of each finite row; float32 arithmetic, as defined."""
    x = x.float()
    if symmetric:
        scale = x.abs().amax(-1, keepdim=True) / 127
    else:
        low = x.amin(-1, keepdim=True).clamp(max=0)
        scale = (x.amax(-1, keepdim=True).clamp(min=0) - low) / 255
    scale = scale.masked_fill(scale == 0, 1)
    if symmetric:
        return torch.round(x / scale).clamp(-127, 127), scale, torch.zeros_like(scale)
    azp = (-128 - torch.round(low / scale)).clamp(-128, 127)
    return (torch.round(x / scale) + azp).clamp(-128, 127), scale, azp
