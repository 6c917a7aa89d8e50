"""Numbers written down anew for the tests: nothing of the core's numerics is used here."""

from __future__ import annotations

import numpy as np
import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pack_nibbles(codes: torch.Tensor, dtype: str) -> torch.Tensor:
    """Codes [rows, size] in words of ``int32`` or ``uint8``, lowest bits first."""
    per_word = 8 if dtype == "int32" else 2
    wide = codes.numpy().astype(np.uint64).reshape(codes.shape[0], -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(4)
    words = (wide << shifts).sum(-1)
    unsigned = np.uint32 if dtype == "int32" else np.uint8
    return torch.from_numpy(words.astype(unsigned).view(getattr(np, dtype)).copy())


def e4m3(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if sign else size


def e5m2(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 2 & 31, code & 3
    if exponent == 31:
        size = float("nan") if mantissa else float("inf")
    elif exponent == 0:
        size = mantissa * 2.0**-16
    else:
        size = (4 + mantissa) * 2.0 ** (exponent - 17)
    return -size if sign else size


def e8m0(code: int) -> float:
    return float("nan") if code == 255 else 2.0 ** (code - 127)


def allowed(
    a: torch.Tensor, b: torch.Tensor, out: torch.dtype, operand: torch.dtype
) -> torch.Tensor:
    """What rounding can explain of a product ``a @ b.t()`` whose sums are in float32.

    Args:
        a: float64 [M, K], as it is multiplied.
        b: float64 [N, K], dequantized.
        out: the result's dtype.
        operand: the dtype that b may have been rounded to.
    """
    K = a.shape[1]
    summed = a.abs() @ b.abs().t()
    unit = torch.finfo(torch.float32).eps / 2
    sums = (K + 16) * unit * summed
    weights = torch.finfo(operand).eps / 2 * summed if operand != torch.float32 else 0 * summed
    value = (a @ b.t()).abs()
    return sums + weights + torch.finfo(out).eps * (value + sums + weights) + 1e-30
