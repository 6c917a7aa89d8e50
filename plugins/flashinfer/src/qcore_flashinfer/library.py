"""FlashInfer as it is installed here: what it has, and on which GPUs it says that this runs.

Which GPUs a function is for is asked of the function (``is_backend_supported``), so this plugin has
no table that could be out of date; without the package there is no answer, and kernels say so.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from qcore.facts.current_platform import current_platform

__all__ = [
    "CHECKED",
    "backend_refusal",
    "fault",
    "function",
    "here_refusal",
    "installed_version",
    "signature_fault",
]

CHECKED = ("0.6", "0.7")
"""Releases whose signatures are in ``tests/signatures.json``."""

_MODULES = ("flashinfer", "flashinfer.gemm")

_PYTHON_MODULES = {
    "cudnn": ("cudnn", "nvidia-cudnn-frontend"),
    "cute-dsl": ("cutlass", "nvidia-cutlass-dsl"),
    "b12x": ("cutlass", "nvidia-cutlass-dsl"),
}
"""What a backend needs besides FlashInfer: (module, distribution)."""

NOT_INSTALLED = (
    "flashinfer-python is not installed, and only it knows which GPUs its kernels run on; "
    "pip install flashinfer-python"
)


def installed_version() -> str | None:
    """Of the distribution ``flashinfer-python``; None where it is not installed."""
    try:
        return version("flashinfer-python")
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def fault() -> str | None:
    """Why FlashInfer cannot be imported; None where it can."""
    try:
        if find_spec("flashinfer") is None:
            return NOT_INSTALLED
        for module in _MODULES:
            import_module(module)
    except Exception as error:  # it looks for CUDA, compilers and other packages as it is imported
        return f"importing flashinfer raised {type(error).__name__}: {error}"
    return None


def function(name: str) -> Callable[..., Any] | None:
    """FlashInfer's function ``name``; None where it has none of that name."""
    if fault() is not None:
        return None
    for module in _MODULES:
        found: Callable[..., Any] | None = getattr(import_module(module), name, None)
        if found is not None:
            return found
    return None


def signature_fault(name: str, parameters: Sequence[str]) -> str | None:
    """Why ``name`` cannot be called with these keywords; None where it can."""
    if (why := fault()) is not None:
        return why
    which = f"flashinfer-python {installed_version() or ''}".rstrip()
    found = function(name)
    if found is None:
        return f"{which} has no {name}; releases {' and '.join(CHECKED)} have it"
    takes = inspect.signature(found).parameters
    missing = [parameter for parameter in parameters if parameter not in takes]
    if missing:
        return f"{name} of {which} does not take {', '.join(missing)}; it takes {', '.join(takes)}"
    return None


def backend_refusal(name: str, backend: str, capability: int | None) -> str | None:
    """Why FlashInfer says that a backend of ``name`` is not for a GPU; None where it is."""
    if capability is None:
        return "the GPU's compute capability is not known"
    which = f"flashinfer-python {installed_version() or ''}".rstrip()
    ask = getattr(function(name), "is_backend_supported", None)
    if ask is None:
        return f"{name} of {which} does not say which GPUs it supports"
    if not ask(backend):
        return f"{name} of {which} has no backend {backend}"
    if not ask(backend, capability):
        return f"{which} says that {name} by {backend} is not for compute capability {capability}"
    return None


def here_refusal(backend: str) -> str | None:
    """What this machine lacks; None if nothing, or if another machine is being weighed."""
    if not current_platform.target.is_current:
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is false: torch finds no GPU that it can use"
    needed = _PYTHON_MODULES.get(backend)
    if needed is not None and not _has_module(needed[0]):
        return f"FlashInfer's backend {backend} needs {needed[1]}, not installed"
    if needed is None and not _can_compile():
        return (
            "FlashInfer compiles its kernels when they are first used: there is no nvcc on PATH or "
            "in CUDA_HOME, and flashinfer-jit-cache is not installed"
        )
    return None


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _can_compile() -> bool:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return (
        shutil.which("nvcc") is not None
        or (Path(home) / "bin" / "nvcc").is_file()
        or _has_module("flashinfer_jit_cache")
    )
