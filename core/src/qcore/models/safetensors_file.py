"""Read safetensors files: the header, checked, and one tensor at a time.

A file is a header length (8 bytes, little-endian), a JSON header that gives each tensor's dtype,
shape and bytes, and the bytes. Source: the format's description in huggingface/safetensors.

The header is checked against the file's size before any tensor is read, so a file cut short is
found at once. Tensors are read, not mapped: a file that changes later cannot crash the process, and
memory holds what was asked for.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from qcore.errors import CheckpointError
from qcore.quantization.json_text import check_text, parse_json, shown

__all__ = [
    "TensorInfo",
    "check_name",
    "read_header",
    "read_tensor",
    "same_bytes",
    "same_place",
]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names in the header, of the types that fill whole bytes."""

_MAX_HEADER = 100 * 2**20  # the reference implementation's limit
_CHUNK = 16 * 2**20
_MAX_DIMS = 16
_MAX_EMPTY = 2**31
_MAX_NAME, _MAX_PARTS = 256, 32
"""Of a tensor's name: its length, and the parts between its dots. Lists and patterns of layers are
matched against names, so that long ones would cost time."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
        name: of the tensor.
        dtype: of its elements.
        shape: its sizes.
        file: where it is.
        offset: of its first byte in the file.
        nbytes: of its data.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The tensor, from its bytes (uint8)."""
        return data.view(self.dtype).reshape(self.shape)

    def with_dtype(self, dtype: torch.dtype) -> TensorInfo:
        """The same tensor to be read as ``dtype``, where reading can convert; else itself."""
        return self

    def __str__(self) -> str:
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, by name.

    Raises:
        CheckpointError: it is not a whole, well-formed safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{file}: not a safetensors file, or cut short: it has {size} bytes, and its "
                    f"header would have {length}. Fetch it again"
                )
            if length > _MAX_HEADER:
                raise CheckpointError(f"{file}: a header of {length} bytes is beyond the format's")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    header = _parse(file, raw)
    header.pop("__metadata__", None)
    start = 8 + length
    found = {name: _info(file, name, entry, start) for name, entry in header.items()}
    _check_extent(file, found, start, size)
    return found


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = parse_json(raw, unique=True, check=False)  # names are checked one by one
    except ValueError as error:
        raise CheckpointError(
            f"{file}: the safetensors header is no JSON: {error}. Fetch the file again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the safetensors header is no JSON object")
    return header


def _info(file: Path, name: str, entry: object, start: int) -> TensorInfo:
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"{file}: tensor {shown(name)}: {what}")

    check_name(file, name)
    if not isinstance(entry, Mapping):
        raise wrong("its header entry is no object")
    stated = entry.get("dtype")
    dtype = DTYPES.get(stated) if isinstance(stated, str) else None
    if dtype is None:
        raise wrong(f"dtype {shown(stated)} is not known; known: {', '.join(DTYPES)}")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or len(shape) > _MAX_DIMS:
        raise wrong(f"shape {shown(entry.get('shape'))} is no list of sizes")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"data_offsets {shown(entry.get('data_offsets'))} are no range")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise wrong(f"{shape} of {stated} takes {nbytes} bytes, data_offsets are {offsets}")
    if not nbytes and max(shape) >= _MAX_EMPTY:
        raise wrong(f"shape {shape} is none that a tensor without elements can have")
    return TensorInfo(name, dtype, tuple(shape), file, start + offsets[0], nbytes)


def check_name(file: Path, name: str) -> None:
    """Check a tensor's name.

    Raises:
        CheckpointError: no model has such a name: too long, or with characters of no text.
    """
    try:
        check_text(name)
    except ValueError as error:
        raise CheckpointError(f"{file}: the name of a tensor is {error}") from None
    if len(name) > _MAX_NAME or name.count(".") >= _MAX_PARTS:
        raise CheckpointError(
            f"{file}: tensor {shown(name)}: its name has {len(name)} characters and "
            f"{name.count('.') + 1} parts; {_MAX_NAME} and {_MAX_PARTS} are read"
        )


def _sizes(values: object) -> list[int] | None:
    """``values`` if it is a list of sizes."""
    good = isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)
    return cast("list[int]", values) if good else None


def _check_extent(file: Path, found: Mapping[str, TensorInfo], start: int, size: int) -> None:
    """The tensors must fill the file, without gap or overlap."""
    end = start
    for info in sorted(found.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            kind = "overlaps another" if info.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{file}: tensor {info.name!r} {kind}; the file is damaged")
        end += info.nbytes
    if end > size:
        raise CheckpointError(
            f"{file}: cut short: it has {size} bytes, its header needs {end}. Fetch it again"
        )
    if end < size:
        raise CheckpointError(
            f"{file}: {size - end} bytes after the last tensor; the file is damaged"
        )


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """The tensor, on the CPU, in memory of its own.

    Raises:
        CheckpointError: the file cannot be read, or is shorter than it was.
    """
    data = torch.empty(info.nbytes, dtype=torch.uint8)
    # Into torch's own memory, which is aligned; by ctypes, as numpy is no dependency.
    view = memoryview((ctypes.c_ubyte * info.nbytes).from_address(data.data_ptr()))
    try:
        with info.file.open("rb") as stream:
            stream.seek(info.offset)
            done = 0
            while done < info.nbytes:
                got = stream.readinto(view[done : done + _CHUNK])
                if not got:
                    raise CheckpointError(
                        f"{info.file}: became shorter during reading ({info.name})"
                    )
                done += got
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot be read: {error.strerror or error}") from error
    return info.decode(data)


def same_place(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors are the same bytes of the same file."""
    return (one.file, one.offset, one.nbytes) == (other.file, other.offset, other.nbytes)


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors are equal, without holding either whole.

    Raises:
        CheckpointError: a file cannot be read, or is shorter than it was.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if same_place(one, other):
        return True
    try:
        with one.file.open("rb") as left, other.file.open("rb") as right:
            left.seek(one.offset)
            right.seek(other.offset)
            remaining = one.nbytes
            while remaining > 0:
                step = min(_CHUNK, remaining)
                data = left.read(step)
                if len(data) != step:
                    raise CheckpointError(f"{one.file}: became shorter during reading ({one.name})")
                if data != right.read(step):
                    return False
                remaining -= step
    except OSError as error:
        raise CheckpointError(f"{one.file}: cannot be read: {error.strerror or error}") from error
    return True
