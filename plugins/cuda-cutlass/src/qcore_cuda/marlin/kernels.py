"""Kernels of a scheme, made ready: compiled in, loaded from the cache, or compiled now."""

from __future__ import annotations

from threading import Lock

import torch

from qcore_cuda import library
from qcore_cuda.marlin.cache import compiled
from qcore_cuda.marlin.compilers import HOW_TO_GET_ONE, find_compiler
from qcore_cuda.marlin.instances import THREAD_CONFIGS, Instance, Scheme, tiles_of

__all__ = ["missing", "prepare", "refusal"]

_lock = Lock()


def missing(scheme: Scheme) -> list[Instance]:
    """The kernels that a layer may need for some number of rows, and that are not loaded."""
    library.load()
    has = torch.ops.qcore_cuda.marlin_has_kernel
    return [
        instance
        for instance in tiles_of(scheme)
        if THREAD_CONFIGS[instance.thread_config][2] == 256 and not has(scheme.key, instance.slot)
    ]


def refusal(scheme: Scheme) -> str | None:
    """Why the kernels cannot be had here; None if they can, perhaps by compiling them."""
    if not missing(scheme) or find_compiler() is not None:
        return None
    return (
        f"no kernel for {scheme.config} in groups of {scheme.group_blocks} blocks of 16 was "
        f"compiled into this wheel, and there is no compiler to make one ({HOW_TO_GET_ONE})"
    )


def prepare(scheme: Scheme, capability: int) -> None:
    """Load the kernels of a scheme, compiled first where they are missing.

    Args:
        scheme: of the layer.
        capability: of the device: 90 for sm_90.

    Raises:
        MissingDependencyError: one is missing and there is no compiler.
        CompileError: it does not compile.
    """
    with _lock:
        wanted = missing(scheme)
        if not wanted:
            return
        path = str(compiled(wanted, capability))
        for instance in wanted:
            torch.ops.qcore_cuda.marlin_load_kernel(scheme.key, instance.slot, path, instance.name)
