"""Small weights side by side in pages of 2 MiB.

A decoding step reads each weight once. With pages of 4 KiB, whose addresses must all be translated
anew, that takes an eighth more time. The packed weights that fill a large page have such pages from
``csrc/large_pages.cpp``; here the others, and what belongs to them, get theirs.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock

import torch

__all__ = ["in_large_pages"]

_PAGE = 2 << 20
_CHUNK = 4 * _PAGE
"""Of memory that is given out in parts; it goes back when all parts are freed."""

_LINE = 64
"""Bytes; where a part begins is a multiple."""

_AVAILABLE = hasattr(mmap, "MADV_HUGEPAGE")


class _Memory:
    """Parts of a chunk for one after the other, then of the next chunk. Safe with threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._chunk: mmap.mmap | None = None
        self._at = self._end = 0

    def part(self, size: int) -> tuple[mmap.mmap, int]:
        """Memory for ``size`` bytes, and where in it they begin."""
        size = -(-size // _LINE) * _LINE
        if size > _CHUNK // 2:
            return _mapped(size)
        with self._lock:
            if self._chunk is None or self._at + size > self._end:
                self._chunk, self._at = _mapped(_CHUNK)
                self._end = self._at + _CHUNK
            begin = self._at
            self._at += size
            return self._chunk, begin


_memory = _Memory()


def _mapped(size: int) -> tuple[mmap.mmap, int]:
    """New memory, and the place in it where a large page begins, with ``size`` bytes from there."""
    # Neither what is never touched nor the bytes before that place take memory.
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _PAGE
    with suppress(OSError):  # of a kernel without such pages
        memory.madvise(mmap.MADV_HUGEPAGE, begin, size)
    return memory, begin


def in_large_pages(tensors: Mapping[str, torch.Tensor], packed: str) -> dict[str, torch.Tensor]:
    """Copies of a layer's tensors, side by side in large pages where the system has them.

    Each has a storage of its own, which keeps the chunk that it lies in.

    Args:
        tensors: dense, by name.
        packed: the one whose memory ``csrc/large_pages.cpp`` gave.
    """
    return {
        name: tensor if name == packed and tensor.nbytes >= _PAGE else _moved(tensor)
        for name, tensor in tensors.items()
    }


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    if not _AVAILABLE or type(tensor) is not torch.Tensor or tensor.device.type != "cpu":
        return tensor
    if tensor.numel() == 0 or not tensor.is_contiguous():
        return tensor
    memory, begin = _memory.part(tensor.nbytes)
    part = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
    return part.view(tensor.shape).copy_(tensor)
