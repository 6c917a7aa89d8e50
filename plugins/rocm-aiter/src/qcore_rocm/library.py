"""The code objects that travel in the wheel, and whether they can run.

One for each architecture, ``code_objects/gfx942.co``, compiled from ``csrc``. Where no clang for
AMD's GPUs was there when the wheel was built, it has none, and says so when it is asked.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from qcore.errors import MissingDependencyError
from qcore.facts.current_platform import current_platform

from qcore_rocm import driver, launching

__all__ = [
    "ARCHS",
    "FP8_ARCHS",
    "built",
    "code_object",
    "code_object_path",
    "compiled_archs",
    "refusal",
    "unusable_here",
]

ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1201")
"""What the kernels are written for."""

FP8_ARCHS = ("gfx942", "gfx950", "gfx1201")
"""Those with matrix instructions of 8-bit floats."""

_FOLDER = Path(__file__).parent / "code_objects"


@lru_cache(maxsize=1)
def compiled_archs() -> tuple[str, ...]:
    """The architectures that the wheel has code for."""
    return tuple(arch for arch in ARCHS if code_object_path(arch).is_file())


def code_object_path(arch: str) -> Path:
    """Where the code for an architecture lies, if the wheel has it."""
    return _FOLDER / f"{arch}.co"


def code_object(arch: str) -> bytes:
    """The code for an architecture.

    Raises:
        MissingDependencyError: the wheel has none.
    """
    try:
        return code_object_path(arch).read_bytes()
    except OSError as error:
        raise MissingDependencyError(_no_code(arch)) from error


def _no_code(arch: str) -> str:
    compiled = compiled_archs()
    if not compiled:
        return built()
    return f"compiled for {', '.join(compiled)}; this device is {arch}"


def built() -> str:
    """How the wheel came to its code objects, in words, where it has none."""
    try:
        why = (_FOLDER / "built.txt").read_text(encoding="utf-8").strip()
    except OSError:
        why = "it is run from source"
    return (
        f"qcore-rocm has no compiled kernels: {why}; a wheel built where clang 19 or later and lld "
        "are installed has them"
    )


@lru_cache(maxsize=1)
def unusable_here() -> str | None:
    """Why no code object can run on this machine, whatever its GPU; None where they can."""
    if torch.version.hip is None:
        return (
            f"torch {torch.__version__} is built without ROCm; install a ROCm build of torch "
            "(qcore-rocm brings kernels, not the runtime)"
        )
    try:
        count = driver.hip().devices()
    except (MissingDependencyError, driver.DriverError) as error:
        return str(error)
    if count == 0 or not torch.cuda.is_available():
        return "torch.cuda.is_available() is false: torch finds no GPU that it can use"
    return None


def refusal() -> str | None:
    """Why the code objects cannot run on the target being weighed; None where they can."""
    if launching.stands_in():
        return None
    target = current_platform.target
    if target.is_current:
        reason = unusable_here()
        if reason is not None:
            return reason
    if target.arch is None:
        return "the device's architecture is not known"
    if target.arch not in compiled_archs():
        return _no_code(target.arch)
    return None
