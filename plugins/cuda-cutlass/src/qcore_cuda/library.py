"""The compiled library: what it was compiled for, whether it can be used, loading it once.

It is built against torch's stable ABI, with no Python in it; its ops are in
``torch.ops.qcore_cuda``. It loads beside any torch, also one without CUDA, where only the ops'
schemas and fakes are of use.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from qcore.errors import MissingDependencyError
from qcore.facts.current_platform import current_platform

__all__ = ["LIBRARY", "compiled_archs", "compiled_for_turing", "load", "refusal", "unusable_here"]

_FOLDER = Path(__file__).parent
LIBRARY = _FOLDER / "qcore_cuda.so"
"""Where the library lies."""

_lock = Lock()
_loaded = False


def load() -> None:
    """Load the library and register its ops and their fakes; later calls do nothing.

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
                f"qcore-cuda is installed without its compiled library ({LIBRARY.name}); "
                "install a wheel for this platform, or build from source with nvcc"
            )
        try:
            torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise MissingDependencyError(
                f"qcore-cuda's library does not load under torch {torch.__version__} "
                f"(it needs 2.10 or later): {error}"
            ) from error
        from qcore_cuda import ops

        ops.register_fakes()
        _loaded = True


@lru_cache(maxsize=1)
def compiled_archs() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What the library was compiled for.

    Returns:
        The capabilities of the portable code (80 for sm_80), rising, of which the lowest is there
        as PTX too; and the architectures of the code that uses one generation's own instructions
        (``90a``). Empty where there is no library.
    """
    try:
        text = (_FOLDER / "compiled_archs.txt").read_text(encoding="utf-8")
    except OSError:
        return (), ()
    portable, specific = (line.split() for line in text.split("\n")[:2])
    return tuple(int(arch) for arch in portable), tuple(specific)


@lru_cache(maxsize=1)
def compiled_for_turing() -> bool:
    """Whether the library has Marlin's kernels for sm_75, all that it may have for it."""
    try:
        text = (_FOLDER / "compiled_archs.txt").read_text(encoding="utf-8")
    except OSError:
        return False
    return "75" in [line.strip() for line in text.split("\n")[2:]]


@lru_cache(maxsize=1)
def unusable_here() -> str | None:
    """Why the library cannot run on this machine, whatever its GPU; None where it can."""
    try:
        load()
    except MissingDependencyError as error:
        return str(error)
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch "
            "(qcore-cuda brings kernels, not the CUDA runtime of torch)"
        )
    if torch.ops.qcore_cuda.driver_version() == 0:
        return "no NVIDIA driver answers on this machine"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is false: torch finds no GPU that it can use"
    return None


def refusal(compute_capability: int | None = None, *specific: str) -> str | None:
    """Why the library's code cannot run on the target being weighed; None where it can.

    Args:
        compute_capability: 90 for sm_90; None for that of the target.
        specific: the architectures, any one of which the kernel needs (``"90a"``); none for
            portable code.
    """
    target = current_platform.target
    capability = compute_capability or target.compute_capability
    if target.is_current:
        reason = unusable_here()
        if reason is not None:
            return reason
    portable, compiled = compiled_archs()
    if not portable:
        return "qcore-cuda is installed without its compiled library"
    if capability is None:
        return "the device's compute capability is not known"
    if specific:
        return _refuse_specific(capability, specific, compiled)
    if capability < portable[0]:
        return f"compiled for {_names(portable)} and later; this device is sm_{capability}"
    return None


def _refuse_specific(
    capability: int, specific: tuple[str, ...], compiled: tuple[str, ...]
) -> str | None:
    wanted = f"{capability}a"
    if wanted not in specific:
        return f"written for {_names(specific)}; this device is sm_{capability}"
    if wanted not in compiled:
        has = f"compiled for {_names(compiled)}" if compiled else "compiled for no generation's own"
        return f"{has}; this device is sm_{capability} (build with QCORE_CUDA_ARCHS)"
    return None


def _names(archs: tuple[int, ...] | tuple[str, ...]) -> str:
    names = [f"sm_{arch}" for arch in archs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
