"""Whether Triton's kernels can run here, their ops, the device they are launched on."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from qcore.facts.current_platform import current_platform
from qcore.kernels.op_library import OpLibrary

__all__ = ["OPS", "interpreted", "on_device_of", "refusal"]

OPS = OpLibrary("qcore_triton", ("CUDA", "CPU"))
"""ROCm's tensors are CUDA's to torch; CPU is for the interpreter."""


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


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Launch on the tensor's device, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
