"""Read a code object: an ELF file whose notes hold a MessagePack map of the kernels.

Sources: LLVM's "User Guide for AMDGPU Backend", "Code Object V5 Metadata"; the ELF and MessagePack
specifications. Only what such files hold is read.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["instructions", "kernels", "metadata", "objdump"]

_NOTE, _AMDGPU_METADATA = 7, 32


def metadata(code: bytes) -> dict[str, Any]:
    """The note's map: ``amdhsa.target``, ``amdhsa.kernels``, ..."""
    if code[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    first, size, count = struct.unpack_from("<Q", code, 40)[0], *struct.unpack_from("<HH", code, 58)
    for index in range(count):
        header = struct.unpack_from("<IIQQQQ", code, first + index * size)
        if header[1] != _NOTE:
            continue
        at, end = header[4], header[4] + header[5]
        while at < end:
            name_size, size_of, kind = struct.unpack_from("<III", code, at)
            name = code[at + 12 : at + 12 + name_size].rstrip(b"\0")
            body = at + 12 + -(-name_size // 4) * 4
            if name == b"AMDGPU" and kind == _AMDGPU_METADATA:
                found: dict[str, Any] = _unpack(code[body : body + size_of], 0)[0]
                return found
            at = body + -(-size_of // 4) * 4
    raise ValueError("no metadata of AMDGPU")


def kernels(code: bytes) -> dict[str, dict[str, Any]]:
    """Each kernel's metadata by its name."""
    return {kernel[".name"]: kernel for kernel in metadata(code)["amdhsa.kernels"]}


_FIXED = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i"}
_SIZED = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    """A MessagePack value, and where it ends."""
    tag = data[at]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    if tag in _FIXED:
        form = _FIXED[tag]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if tag in _SIZED:
        form = _SIZED[tag]
        size = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
        kind = "str" if tag <= 0xDB else "list" if tag <= 0xDD else "map"
    elif tag < 0x90:
        kind, size = "map", tag & 15
    elif tag < 0xA0:
        kind, size = "list", tag & 15
    elif tag < 0xC0:
        kind, size = "str", tag & 31
    else:
        raise ValueError(f"MessagePack tag {tag:#x}")
    if kind == "str":
        return data[at : at + size].decode(), at + size
    values = []
    for _ in range(size * (2 if kind == "map" else 1)):
        value, at = _unpack(data, at)
        values.append(value)
    return (values if kind == "list" else dict(zip(values[::2], values[1::2], strict=True))), at


def objdump() -> str | None:
    """LLVM's disassembler, the newest that is installed."""
    names = ("llvm-objdump-22", "llvm-objdump", "llvm-objdump-19")
    return next((found for found in map(shutil.which, names) if found), None)


def instructions(path: Path, program: str) -> dict[str, list[str]]:
    """Each kernel's instructions, names only."""
    done = subprocess.run([program, "-d", str(path)], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        words = line.split()
        if line.endswith(">:"):
            name = words[-1][1:-2]
            found[name] = []
        elif name and words and line.startswith("\t"):
            found[name].append(words[0])
    return found
