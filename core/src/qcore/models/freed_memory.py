"""`FreedMemory`: give back what malloc keeps of the tensors that loading has freed.

glibc's malloc holds on to freed memory: up to 64 MiB at the end of its heap, and whatever lies
between blocks in use. That can be more than a layer. With another C library, nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

__all__ = ["FreedMemory"]

_STEP = 16 * 2**20


def _find_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


class FreedMemory:
    """Counts what was read, and gives freed memory back now and then: it takes a moment."""

    def __init__(self) -> None:
        self._trim = _find_trim()
        self._read = 0

    def add(self, nbytes: int) -> None:
        """So much was read, and may have been freed."""
        self._read += nbytes

    def give_back(self, *, at_least: int = _STEP) -> None:
        """Give back, if ``at_least`` so much was read since the last time."""
        if self._trim is not None and self._read >= at_least:
            self._trim(0)
            self._read = 0
