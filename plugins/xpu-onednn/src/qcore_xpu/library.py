"""The compiled library: whether it can be used, loading it once.

Built against torch's stable ABI, with no Python in it. Its ops compute on the queue that they are
given; those that users call are in `qcore_xpu.ops`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from qcore.errors import MissingDependencyError
from qcore.facts.current_platform import current_platform

from qcore_xpu import runtime

__all__ = ["LIBRARY", "STAND_IN", "load", "on_stand_in", "refusal", "unusable_here"]

LIBRARY = Path(__file__).with_name("qcore_xpu.so")
"""Where the library lies."""

STAND_IN = "QCORE_XPU_STAND_IN"
"""Environment variable: ``1`` offers the kernels to CPU targets, on SYCL's CPU device."""

_lock = Lock()
_loaded = False


def load() -> None:
    """Load the library and what it needs; later calls do nothing.

    Raises:
        MissingDependencyError: it is not there, or it or something that it needs cannot be loaded.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        if not LIBRARY.is_file():
            raise MissingDependencyError(
                f"qcore-xpu is installed without its compiled library ({LIBRARY.name}); "
                "install a wheel for this platform, or build from source with a C++17 compiler"
            )
        runtime.load()
        try:
            torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise MissingDependencyError(
                f"qcore-xpu's library does not load under torch {torch.__version__} (it needs 2.10 "
                f"or later): {error}"
            ) from error
        _loaded = True


def on_stand_in() -> bool:
    """Whether the user, or a test, wants the kernels on SYCL's CPU device."""
    return os.environ.get(STAND_IN, "0") in ("1", "true", "on", "yes")


@lru_cache(maxsize=1)
def unusable_here() -> str | None:
    """Why the library cannot be loaded on this machine; None where it can."""
    try:
        load()
    except MissingDependencyError as error:
        return str(error)
    return None


def refusal() -> str | None:
    """Why the kernels cannot run on the target being weighed; None where they can."""
    target = current_platform.target
    if current_platform.is_cpu() and on_stand_in():
        return unusable_here() if target.is_current else None
    if not current_platform.is_xpu():
        return f"is for Intel GPUs ({STAND_IN}=1 runs it on SYCL's CPU device)"
    return unusable_here() if target.is_current else None
