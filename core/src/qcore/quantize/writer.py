"""`ShardWriter`: safetensors files whose tensors are written as they come, in any order.

All names, dtypes and shapes are known before the first tensor is computed, so every header is
written first and each tensor goes straight to its place: no shard is ever held in memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from qcore.models.safetensors_file import DTYPES

__all__ = ["PlannedTensor", "ShardWriter"]

_SPELLING = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is going to be written.

    Attributes:
        name: its key.
        dtype: of its elements.
        shape: its sizes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes the weight files of a checkpoint. Use as a context.

    Args:
        folder: where.
        groups: all tensors; those of one group (a layer) go to the same file.
        max_shard_bytes: what a file may hold, unless one group is larger.
        metadata: for the header of each file.
    """

    def __init__(
        self,
        folder: Path,
        groups: Iterable[Sequence[PlannedTensor]],
        max_shard_bytes: int,
        metadata: dict[str, str],
    ) -> None:
        self._folder = folder
        self._shards = _split(groups, max_shard_bytes)
        self._place: dict[str, tuple[int, int, PlannedTensor]] = {}
        self._missing: set[str] = set()
        self._files: list[BinaryIO] = []
        try:
            for index, tensors in enumerate(self._shards):
                self._start(index, tensors, metadata)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    @property
    def shards(self) -> int:
        """How many files there are."""
        return len(self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensors in self._shards for tensor in tensors)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a planned tensor."""
        shard, offset, planned = self._place[name]
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if tuple(tensor.shape) != planned.shape or tensor.dtype != planned.dtype:
            raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)} is not {planned}")
        self._files[shard].seek(offset)
        self._files[shard].write(data.numpy().data)
        self._missing.discard(name)

    def finish(self) -> None:
        """Flush the files and write the index, if there are several."""
        if self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing)[:5])}")
        for file in self._files:
            file.flush()
        if self.shards > 1:
            weight_map = {name: self._name(place[0]) for name, place in self._place.items()}
            index = {
                "metadata": {"total_size": self.nbytes},
                "weight_map": dict(sorted(weight_map.items())),
            }
            text = json.dumps(index, indent=2) + "\n"
            (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _name(self, shard: int) -> str:
        if self.shards == 1:
            return "model.safetensors"
        return f"model-{shard + 1:05d}-of-{self.shards:05d}.safetensors"

    def _start(self, shard: int, tensors: list[PlannedTensor], metadata: dict[str, str]) -> None:
        """Write a file's header, and make the file as long as it will be."""
        header: dict[str, object] = {"__metadata__": metadata}
        end = 0
        offsets = []
        # Widest elements first: every tensor is then aligned to its elements.
        for tensor in sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name)):
            start, end = end, end + tensor.nbytes
            offsets.append((tensor, start))
            header[tensor.name] = {
                "dtype": _SPELLING[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = (self._folder / self._name(shard)).open("wb")
        self._files.append(file)
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        file.truncate(8 + len(text) + end)
        for tensor, start in offsets:
            self._place[tensor.name] = (shard, 8 + len(text) + start, tensor)
            self._missing.add(tensor.name)

    def _close(self) -> None:
        for file in self._files:
            file.close()


def _split(
    groups: Iterable[Sequence[PlannedTensor]], max_shard_bytes: int
) -> list[list[PlannedTensor]]:
    """Fill one shard after the other."""
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for group in groups:
        size = sum(tensor.nbytes for tensor in group)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1] += group
        filled += size
    return shards
