"""The compiled library: loaded once, when a kernel is first used.

Built against torch's stable ABI, with no Python in it; its ops are in ``torch.ops.qcore_cpu``.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import torch
from qcore.errors import MissingDependencyError
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer

__all__ = ["LIBRARY", "isa", "load", "refusal", "set_isa", "supported", "supported_isas"]

LIBRARY = Path(__file__).with_name("qcore_cpu.so")
"""Where the library lies."""

_lock = Lock()
_loaded = False


def load() -> None:
    """Load the library and register its ops; later calls do nothing.

    Raises:
        MissingDependencyError: it is not there, or this torch cannot load it.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        if not LIBRARY.is_file():
            raise MissingDependencyError(
                f"qcore-cpu is installed without its compiled library ({LIBRARY.name}); "
                "install a wheel for this platform, or build from source with a C++17 compiler"
            )
        try:
            torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise MissingDependencyError(
                f"qcore-cpu's library does not load under torch {torch.__version__} "
                f"(it needs 2.10 or later): {error}"
            ) from error
        from qcore_cpu import fakes

        fakes.register()
        _loaded = True


def refusal() -> str | None:
    """Why the library cannot be used here; None where it can."""
    try:
        load()
    except MissingDependencyError as error:
        return str(error)
    return None


def supported() -> Answer:
    """The `is_supported` of its kernels: whether it loads, if this machine is asked about."""
    return answer(refusal() if current_platform.target.is_current else None)


def isa() -> str:
    """The instruction set in use.

    One of ``amx``, ``avx512_bf16``, ``avx512``, ``avxvnni``, ``avx2``, ``neon``, ``scalar``.
    """
    load()
    return str(torch.ops.qcore_cpu.isa())


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that the library has code for and this machine can run, widest first."""
    load()
    return tuple(torch.ops.qcore_cpu.supported_isas().split(","))


def set_isa(name: str) -> None:
    """Use another instruction set from now on, in the whole process. For tests and measurements.

    Raises:
        RuntimeError: this machine does not support it; the message says what it does support.
    """
    load()
    torch.ops.qcore_cpu.set_isa(name)
