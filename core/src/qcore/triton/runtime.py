"""Whether Triton's kernels can run here, their ops, the device they are launched on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from qcore.facts.current_platform import current_platform

__all__ = ["FP8_SUM_UNIT", "define", "interpreted", "on_device_of", "refusal"]

FP8_SUM_UNIT = 2.0**-13 * 34 / 32
"""What a product of 8-bit floats may lose in the sums of Hopper's and Ada's tensor cores, as a
fraction of the largest of these sums: 33 numbers are aligned with the largest, cut off 13 bits
below its first bit, and so is their sum (DeepSeek-V3 Technical Report, arXiv 2412.19437, 3.5.2)."""

_library = torch.library.Library("qcore_triton", "FRAGMENT")  # type: ignore[no-untyped-call]
_DISPATCH_KEYS = ("CUDA", "CPU")  # ROCm's tensors are CUDA's to torch; CPU is for the interpreter


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python (``TRITON_INTERPRET=1``), on tensors anywhere."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "on", "yes")


def refusal() -> str | None:
    """Why kernels cannot be compiled and run on the target being weighed; None where they can."""
    if not current_platform.target.is_current:
        return None
    if find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None
    if current_platform.is_cuda() and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is false: torch finds no GPU that it can use"
    return None


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register the op ``qcore_triton::NAME``.

    Args:
        schema: ``NAME(Tensor x, ...) -> Tensor``.
        run: what it does.
        fake: the form of what it returns, for tracing.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for key in _DISPATCH_KEYS:
        _library.impl(name, run, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"qcore_triton::{name}", fake, lib=_library)


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Launch on the tensor's device, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
