"""Marlin's layout as permutations in numpy, and problems for each scheme with float64 weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from qcore_cuda.marlin.instances import Scheme
from w4_oracle import Array, activations, write_bits

__all__ = [
    "Problem",
    "assert_marlin",
    "bias_order",
    "columns",
    "inputs",
    "marlin",
    "marlin_zeros",
    "problem",
    "scale_order",
]

Tensor = torch.Tensor
ORDER = {
    (4, False): (0, 2, 4, 6, 1, 3, 5, 7),
    (4, True): (0, 4, 1, 5, 2, 6, 3, 7),
    (8, False): (0, 2, 1, 3),
    (8, True): (0, 1, 2, 3),
}
GROUPED = [i + 8 * j for i in range(8) for j in range(8)]
SINGLE = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "s8": torch.int8,
    "fe4m3fn": torch.float8_e4m3fn,
    "fe8m0fnu": torch.float8_e8m0fnu,
}


def permutation(bits: int, a_8bit: bool) -> Array:
    places = []
    for thread in range(32):
        if a_8bit:
            rows = [4 * (thread % 4) + r + 16 * h for h in (0, 1) for r in range(4)]
        else:
            rows = [2 * (thread % 4) + r + 8 * h for h in (0, 1) for r in (0, 1)]
        mine = [16 * row + thread // 4 + 8 * block for block in (0, 1) for row in rows]
        for tile in range(2 if a_8bit else 4):
            places += [place + (512 if a_8bit else 256) * tile for place in mine]
    order = ORDER[bits, a_8bit]
    return np.array(places).reshape(-1, len(order))[:, order].ravel()


def marlin(codes: Array, bits: int, a_8bit: bool = False) -> Tensor:
    K, N = codes.shape
    rows = 32 if a_8bit else 16
    tiles = codes.reshape(K // rows, rows, N // 16, 16).transpose(0, 2, 1, 3)
    ordered = tiles.reshape(-1, 1024)[:, permutation(bits, a_8bit)].reshape(K // 16, N * 16)
    return write_bits(ordered, bits, 1)


def columns(t: Tensor, order: list[int]) -> Tensor:
    return t.reshape(-1, len(order))[:, order].reshape(t.shape).contiguous()


def scale_order(t: Tensor, a_8bit: bool = False) -> Tensor:
    raw = t.view(torch.uint8) if t.element_size() == 1 else t
    return columns(raw, SINGLE if a_8bit or t.shape[0] == 1 else GROUPED).view(t.dtype)


def bias_order(bias: Tensor) -> Tensor:
    return columns(bias[None], SINGLE)[0]


def marlin_zeros(zeros: Array, bits: int, a_8bit: bool = False) -> Tensor:
    ordered = columns(torch.from_numpy(zeros), GROUPED)
    if not a_8bit:
        ordered = columns(ordered, list(ORDER[bits, False]))
    return write_bits(ordered.numpy(), bits, 1)


@dataclass
class Problem:
    """A weight in Marlin's layout, and what it is."""

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    global_scale: Tensor | None
    g_idx: Tensor | None
    weight: Tensor  # float64 [K, N], as it is
    codes: Array


def problem(scheme: Scheme, K: int, N: int, seed: int = 0) -> Problem:
    """Codes of the whole range, scales and zero points that differ for all columns and groups."""
    random = np.random.default_rng(seed)
    narrow = scheme.a_type in ("s8", "fe4m3fn")
    bits = 4 if scheme.b_type in ("u4", "u4b8", "fe2m1f") else 8
    size = {-1: K, 0: 32}.get(scheme.group_blocks, 16 * scheme.group_blocks)
    G = -(-K // size)
    groups = np.arange(K) // size
    g_idx = None
    if scheme.group_blocks == 0:  # runs of no fixed size
        groups = np.sort(random.integers(0, G, K))
        g_idx = torch.from_numpy(groups.astype(np.int32))
    codes = random.integers(0, 1 << bits, (K, N))
    zeros = None
    if scheme.b_type == "fe2m1f":
        values = E2M1[codes]
    elif scheme.b_type == "fe4m3fn":
        codes[codes % 128 == 127] = 0  # NaN
        values = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn).double().numpy()
    elif scheme.is_zp_float:
        numbers = torch.from_numpy(random.uniform(0, 15, (G, N))).half()
        values = codes - numbers.double().numpy()[groups]
        zeros = scale_order(torch.cat([numbers, numbers]))[:G]  # grouped also if G is 1
    elif scheme.b_type in ("u4", "u8"):
        points = random.integers(0, 1 << bits, (G, N))
        points[0, :2] = 0, (1 << bits) - 1
        values = codes - points[groups]
        zeros = marlin_zeros(points, bits, narrow)
    else:
        values = codes - (8 if bits == 4 else 128)
    out_type = DTYPES[scheme.c_type]
    if scheme.s_type == "fe4m3fn":
        scales = torch.from_numpy(random.uniform(0.001, 4, (G, N))).to(torch.float8_e4m3fn)
    elif scheme.s_type == "fe8m0fnu":
        exponents = random.integers(115, 125, (G, N)).astype(np.uint8)
        scales = torch.from_numpy(exponents).view(torch.float8_e8m0fnu)
    else:
        scales = torch.from_numpy(random.uniform(0.002, 0.02, (G, N))).to(out_type)
    wide = scales.float().double()
    weight = torch.from_numpy(np.asarray(values, np.float64)) * wide[torch.from_numpy(groups)]
    global_scale = torch.tensor([0.0037]) if scheme.s_type == "fe4m3fn" else None
    if global_scale is not None:
        weight = weight * global_scale.double()
    grouped = scheme.group_blocks != -1 and not narrow
    ordered = scale_order(torch.cat([scales, scales]))[:G] if grouped else scale_order(scales, True)
    return Problem(marlin(codes, bits, narrow), ordered, zeros, global_scale, g_idx, weight, codes)


def narrow_activations(a_type: str, M: int, K: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """8-bit activations [M, K] and a scale for each row."""
    random = torch.Generator().manual_seed(seed)
    scales = torch.rand(M, generator=random) * 0.02 + 0.001
    if a_type == "s8":
        return torch.randint(-128, 128, (M, K), generator=random, dtype=torch.int8), scales
    return (torch.randn(M, K, generator=random) * 20).to(torch.float8_e4m3fn), scales


def inputs(scheme: Scheme, M: int, K: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Activations, what they are, and the scales of 8-bit ones."""
    if scheme.a_type in ("s8", "fe4m3fn"):
        x, scales = narrow_activations(scheme.a_type, M, K)
        return x, x.float().double() * scales.double()[:, None], scales
    x = activations(M, K, DTYPES[scheme.a_type])
    return x, x.double(), None


def assert_marlin(
    out: Tensor, x: Tensor, p: Problem, scheme: Scheme, bias: Tensor | None = None
) -> None:
    """Within the bounds of the format's arithmetic.

    Sums are in float32; weights in groups are rounded where they meet their scales, which eight
    standard deviations of that error bound; tensor cores add products of e4m3 with 13 bits.
    """
    K = x.shape[1]
    weight = p.weight[:K]
    exact, sizes = x @ weight, x.abs() @ weight.abs()
    norm = (x**2 @ weight**2).sqrt()
    if bias is not None:
        exact = exact + bias.double()
    allowed = (K + 16) * 2.0**-23 * sizes
    unit = 2.0**-8 if scheme.c_type == "bfloat16" else 2.0**-11
    narrow = scheme.a_type in ("s8", "fe4m3fn")
    if not narrow and scheme.s_type is None and scheme.group_blocks >= 0:
        allowed = allowed + 8 * unit * norm + 2.0**-24 * x.abs().sum(-1, True)
        if scheme.is_zp_float:  # code - zero point is rounded in units of numbers up to 16
            size = 16 * float(p.scales.double().max()) * (x**2).sum(-1, True).sqrt()
            allowed = allowed + 8 * unit * size
    if scheme.a_type == "fe4m3fn":
        allowed = allowed + 33 * 2.0**-13 * norm * (K / 32) ** 0.5
    allowed = allowed + unit * (exact.abs() + allowed) + 2.0**-24
    assert out.shape == exact.shape
    assert out.isfinite().all()
    error = (out.double() - exact).abs()
    assert (error <= allowed).all(), float((error / allowed).max())
