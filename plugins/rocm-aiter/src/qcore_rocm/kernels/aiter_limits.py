"""What all of AITER's 8-bit products ask of a layer."""

from __future__ import annotations

import torch

__all__ = ["alignment", "output_refusal"]


def alignment(shape: tuple[int, int] | None, inputs: int = 16) -> str | None:
    """Why (N, K) does not do: N in multiples of 16, K of ``inputs``."""
    if shape is None:
        return "the layer's shape is not known"
    N, K = shape
    if N % 16 == 0 and K % inputs == 0:
        return None
    return f"N={N}, K={K}; multiples of 16 and of {inputs} only"


def output_refusal(dtype: torch.dtype | None) -> str | None:
    """Why results of ``dtype`` are not made."""
    if dtype in (torch.float16, torch.bfloat16):
        return None
    if dtype is None:
        return "the output's dtype is not known; float16 and bfloat16 are implemented"
    name = str(dtype).removeprefix("torch.")
    return f"the output is {name}; float16 and bfloat16 are implemented"
