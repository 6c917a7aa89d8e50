"""Humming (``humming-kernels`` on PyPI) as it is installed here: what this plugin calls of it.

Names and layouts were read in release 0.1.19. Humming compiles its kernels when they are first
used, with NVRTC or nvcc, and keeps them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch

__all__ = ["CALLED", "CHECKED", "compiler_fault", "fault", "function", "here_fault"]

CHECKED = "0.1.19"
"""The release whose signatures are in ``tests/humming_signatures.json``."""

CALLED: dict[str, tuple[str, ...]] = {
    "humming.schema:HummingWeightSchema": (
        "b_dtype",
        "bs_dtype",
        "weight_scale_group_size",
        "weight_scale_type",
        "has_zero_point",
    ),
    "humming.transform:prepare_layer_config": (
        "shape_n",
        "shape_k",
        "weight_schema",
        "pad_n_to_multiple",
        "pad_k_to_multiple",
        "torch_dtype",
        "device",
    ),
    "humming.transform:transform_humming_tensors": ("config", "tensors", "already_padded"),
    "humming.ops:humming_gemm": (
        "layer_config",
        "inputs",
        "weight",
        "weight_scale",
        "zero_point",
        "locks",
    ),
}
"""Function, as ``module:name``, and the parameters with which it is called."""


def function(entry: str) -> Callable[..., Any]:
    """The function that `CALLED` lists as ``entry``.

    Raises:
        AttributeError: this release has none of that name.
        Exception: whatever importing Humming raises.
    """
    module, _, name = entry.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


@lru_cache(maxsize=1)
def fault() -> str | None:
    """Why Humming cannot be called as it is here; None where it can."""
    for entry, parameters in CALLED.items():
        name = entry.replace(":", ".")
        try:
            takes = inspect.signature(function(entry)).parameters
        except AttributeError:
            return f"this humming has no {name}; release {CHECKED} of humming-kernels has it"
        except Exception as error:  # it loads libraries and looks for CUDA when it is imported
            return f"importing humming raised {type(error).__name__}: {error}"
        missing = [parameter for parameter in parameters if parameter not in takes]
        if missing:
            return f"{name} takes no {', '.join(missing)}; it takes ({', '.join(takes)})"
    return None


@lru_cache(maxsize=1)
def compiler_fault() -> str | None:
    """Why Humming finds no compiler; None where it finds one, or where it cannot be asked."""
    try:
        find = import_module("humming.jit.runtime").KernelRuntime._get_compiler
    except (ImportError, AttributeError):
        return None  # another release; the first weight that is packed will tell
    try:
        find().signature()
    except Exception as error:
        return f"humming compiles its kernels where they run, and finds no compiler: {error}"
    return None


def here_fault() -> str | None:
    """Why Humming cannot run on this machine, whatever its GPU; None where it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is false: torch finds no GPU that it can use"
    return fault() or compiler_fault()
