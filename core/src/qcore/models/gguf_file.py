"""Read the header of GGUF files: metadata and tensor descriptions, checked against the file's size.

A file is ``GGUF``, a version (uint32), the numbers of tensors and of metadata pairs (uint64 each),
the pairs, the tensor descriptions, and the tensors' bytes. All is little-endian. A string is its
length (uint64) and UTF-8 bytes. A pair is a key, a type (uint32) and a value; an array is the type
of its elements (uint32), their number (uint64) and the elements. A description is a name, the
number of dimensions (uint32), the sizes from the fastest to the slowest (uint64 each), the type of
the blocks (uint32) and an offset (uint64) from the first multiple of ``general.alignment`` after
the header. Source: the format's description in ggml (docs/gguf.md), versions 2 and 3.

The vocabulary makes up most of a header. Its strings are stepped over, not decoded, which takes a
fraction of a second where a general reader takes ten.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

from qcore.errors import CheckpointError
from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.models.checkpoint import inside
from qcore.models.safetensors_file import check_name
from qcore.quantization.json_text import check_text, shown

__all__ = [
    "PLAIN_TYPES",
    "GGUFEntry",
    "GGUFHeader",
    "SkippedArray",
    "read_gguf",
    "read_gguf_header",
]

Value = Union[int, float, bool, str, "tuple[int | float | bool, ...]", "SkippedArray"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_KEPT = 1 << 16
# More than any model has; what a header may cost follows from them.
_MAX_PAIRS, _MAX_TENSORS, _MAX_STRINGS = 1 << 16, 1 << 18, 1 << 23
_MAX_KEY, _MAX_TEXT = 1 << 16, 1 << 24
_MAX_DIMS = 4
_MAX_SIZE = 1 << 40

PLAIN_TYPES = {0: ("F32", 4), 1: ("F16", 2), 28: ("F64", 8), 30: ("BF16", 2)}
"""Number -> name and bytes of an element, of the types that are no blocks and that qcore reads."""

_BY_NUMBER = {kind.number: kind for kind in GGUF_BLOCK_TYPES.values()}
_UNREAD = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class SkippedArray:
    """An array that was stepped over.

    Attributes:
        length: how many elements it has.
    """

    length: int


@dataclass(frozen=True)
class GGUFEntry:
    """A tensor of a file.

    Attributes:
        name: in the file.
        qtype: ``Q4_K``, ``F32``, ...
        shape: from the slowest dimension to the fastest, as torch has it: (N, K).
        offset: of its first byte in the file.
        nbytes: of its data.
        file: where it is.
    """

    name: str
    qtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: Path


@dataclass(frozen=True)
class GGUFHeader:
    """What stands before the tensors.

    Attributes:
        file: the file; of several, the first.
        metadata: the pairs; arrays of strings and long ones are `SkippedArray`.
        tensors: by name.
    """

    file: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GGUFEntry]


def read_gguf_header(file: Path) -> GGUFHeader:
    """Read and check the header.

    Raises:
        CheckpointError: it is not a whole, well-formed GGUF file, or has a tensor of a type that
            is not supported; the message names it.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            return _Reader(file, stream, size).header()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error


def read_gguf(file: Path) -> GGUFHeader:
    """Like `read_gguf_header`, for a model in one file or several.

    Parts are called ``name-00001-of-00003.gguf`` and lie in one folder; the first has the metadata.

    Raises:
        CheckpointError: a part is missing or damaged, or the parts are not of one model.
    """
    match = _PART.fullmatch(file.name)
    header = read_gguf_header(file)
    count = header.metadata.get("split.count", 0)
    if type(count) is not int or count < 2:
        return header
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{file}: one of {count} parts of a model, but not called name-00001-of-{count:05}.gguf"
        )
    if int(match[2]) != 1:
        raise CheckpointError(
            f"{file}: a later part of a model; give the first, {match[1]}-00001-of-{match[3]}.gguf"
        )
    tensors = dict(header.tensors)
    for index in range(2, count + 1):
        other = file.with_name(f"{match[1]}-{index:05}-of-{match[3]}.gguf")
        if not other.exists() and not other.is_symlink():
            raise CheckpointError(f"{other}: not there; the model has {count} parts")
        inside(file.parent, other.name)
        part = read_gguf_header(other)
        if part.metadata.get("split.no") != index - 1 or part.metadata.get("split.count") != count:
            raise CheckpointError(f"{other}: its metadata does not say part {index} of {count}")
        for name, entry in part.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{other}: tensor {name!r} is in another part, too")
            tensors[name] = entry
    total = header.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(f"{file}: the parts have {len(tensors)} tensors, not {total}")
    return GGUFHeader(file, header.metadata, tensors)


class _Reader:
    """Reads one header; knows how many bytes are left."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file = file
        self.stream = stream
        self.size = size
        self.at = 0
        self.strings = 0

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {what}")

    # -- bytes -------------------------------------------------------------------------------

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise self.wrong(
                f"cut short or damaged: {what} would take {count} bytes at byte {self.at}, and the "
                f"file has {self.size}. Fetch it again"
            )

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.wrong(f"became shorter during reading ({what})")
        self.at += count
        return data

    def skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self.stream.seek(count, 1)
        self.at += count

    def number(self, code: str, what: str) -> int:
        form = "<" + code
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def text(self, what: str, limit: int) -> str:
        length = self.number("Q", what)
        self.need(length, what)
        if length > limit:
            raise self.wrong(f"{what} has {length} bytes; {limit} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is no UTF-8") from None

    def key(self) -> str:
        key = self.text("a metadata key", _MAX_KEY)
        try:
            check_text(key)
        except ValueError as error:
            raise self.wrong(f"a metadata key is {error}") from None
        return key

    # -- the header --------------------------------------------------------------------------

    def header(self) -> GGUFHeader:
        if self.size < 24 or self.take(4, "the magic") != _MAGIC:
            raise self.wrong(f"no GGUF file, or cut short: it has {self.size} bytes")
        version = self.number("I", "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            why = "big-endian files are not supported" if swapped else "versions 2 and 3 are read"
            raise self.wrong(f"GGUF version {version}; {why}")
        tensors, pairs = self.number("Q", "the counts"), self.number("Q", "the counts")
        self.need(tensors * 24 + pairs * 13, f"{tensors} tensors and {pairs} metadata pairs")
        if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
            raise self.wrong(f"{tensors} tensors and {pairs} metadata pairs are those of no model")
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self.key()
            if key in metadata:
                raise self.wrong(f"the metadata has {shown(key)} twice")
            metadata[key] = self.value(self.number("I", key), key)
        described = [self.description() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.wrong(f"general.alignment is {shown(alignment)}; it must be a power of two")
        start = -(-self.at // alignment) * alignment
        found: dict[str, GGUFEntry] = {}
        for name, number, shape, offset in described:
            if name in found:
                raise self.wrong(f"tensor {name!r} is there twice")
            if offset % alignment:
                raise self.wrong(f"tensor {name!r}: its offset {offset} is not aligned")
            found[name] = self.entry(name, number, shape, start + offset)
        self.check_overlap(found)
        return GGUFHeader(self.file, metadata, found)

    def value(self, kind: int, key: str) -> Value:
        what = shown(key)
        if kind == _STRING:
            return self.text(what, _MAX_TEXT)
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], 1, what)[0]
        if kind != _ARRAY:
            raise self.wrong(f"metadata {what} has type {kind}, which is not known")
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == _STRING:
            self.need(count * 8, what)
            self.strings += count
            if self.strings > _MAX_STRINGS:
                raise self.wrong(f"more than {_MAX_STRINGS} strings in the metadata ({what})")
            for _ in range(count):
                self.skip(self.number("Q", what), what)
            return SkippedArray(count)
        if kind not in _SCALARS:
            raise self.wrong(f"metadata {what} is an array of type {kind}, which is not supported")
        if count > _KEPT:
            self.skip(count * struct.calcsize("<" + _SCALARS[kind]), what)
            return SkippedArray(count)
        return self.scalars(_SCALARS[kind], count, what)

    def scalars(self, code: str, count: int, what: str) -> tuple[int | float | bool, ...]:
        self.need(count, what)
        form = f"<{count}{code}"
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    def description(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.text("a tensor's name", _MAX_KEY)
        check_name(self.file, name)
        what = f"the description of tensor {name!r}"
        dims = self.number("I", what)
        if not 1 <= dims <= _MAX_DIMS:
            raise self.wrong(f"tensor {name!r} has {dims} dimensions")
        sizes = struct.unpack(f"<{dims}Q", self.take(8 * dims, what))
        return name, self.number("I", what), tuple(reversed(sizes)), self.number("Q", what)

    def entry(self, name: str, number: int, shape: tuple[int, ...], offset: int) -> GGUFEntry:
        count = math.prod(shape)
        if not 0 < count < _MAX_SIZE:
            raise self.wrong(f"tensor {name!r} has shape {list(shape)}")
        if number in PLAIN_TYPES:
            qtype, itemsize = PLAIN_TYPES[number]
            nbytes = count * itemsize
        elif number in _BY_NUMBER:
            kind = _BY_NUMBER[number]
            qtype = kind.name
            if shape[-1] % kind.block_size:
                raise self.wrong(
                    f"tensor {name!r} has rows of {shape[-1]} values, no multiple of the "
                    f"{qtype} block of {kind.block_size}"
                )
            nbytes = math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
        else:
            known = f"{number} ({_UNREAD[number]})" if number in _UNREAD else str(number)
            read = ", ".join((*(n for n, _ in PLAIN_TYPES.values()), *GGUF_BLOCK_TYPES))
            raise self.wrong(
                f"tensor {name!r} has type {known}, which is not supported; {read} are"
            )
        if offset + nbytes > self.size:
            raise self.wrong(
                f"cut short or damaged: tensor {name!r} would end at byte {offset + nbytes}, and "
                f"the file has {self.size}. Fetch it again"
            )
        return GGUFEntry(name, qtype, shape, offset, nbytes, self.file)

    def check_overlap(self, found: Mapping[str, GGUFEntry]) -> None:
        end = 0
        for entry in sorted(found.values(), key=lambda entry: entry.offset):
            if entry.offset < end:
                raise self.wrong(f"tensor {entry.name!r} overlaps another; the file is damaged")
            end = entry.offset + entry.nbytes
