"""What compiles a kernel here: NVRTC as a library, which torch's CUDA wheels bring, or nvcc."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from qcore.errors import QcoreError

__all__ = ["FLAGS", "HOW_TO_GET_ONE", "CompileError", "Compiler", "Nvcc", "Nvrtc", "find_compiler"]

FLAGS = ("-std=c++17", "-default-device")
"""Options of NVRTC; nvcc takes the first alone."""

HOW_TO_GET_ONE = "pip install nvidia-cuda-nvrtc, or put nvcc on the PATH"


class CompileError(QcoreError):
    """A kernel does not compile, or its compiler does not run."""


class Compiler(Protocol):
    """Compiles one source file, in which headers are included as ``marlin/...``."""

    @property
    def version(self) -> str:
        """Name and version, part of what a cached kernel is found by."""

    def compile(self, source: str, headers: Mapping[str, str], arch: int) -> bytes:
        """The binary for one architecture.

        Raises:
            CompileError: the compiler refuses, with its words.
        """


class Nvrtc:
    """NVIDIA's runtime compiler."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = f"nvrtc {major.value}.{minor.value}"

    def _check(self, code: int, log: str = "") -> None:
        if code:
            self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
            text = self.library.nvrtcGetErrorString(code).decode()
            raise CompileError(f"NVRTC: {text}" + (f"\n{log}" if log else ""))

    def compile(self, source: str, headers: Mapping[str, str], arch: int) -> bytes:
        """See `Compiler`."""
        nvrtc = self.library
        program = ctypes.c_void_p()
        # It knows a header by the name that an include has, not by the file that includes it.
        known = {**headers, **{name.rsplit("/", 1)[-1]: text for name, text in headers.items()}}
        names = (ctypes.c_char_p * len(known))(*(name.encode() for name in known))
        texts = (ctypes.c_char_p * len(known))(*(text.encode() for text in known.values()))
        self._check(
            nvrtc.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"marlin.cu", len(known), texts, names
            )
        )
        try:
            flags = [f"--gpu-architecture=sm_{arch}".encode(), *(f.encode() for f in FLAGS)]
            options = (ctypes.c_char_p * len(flags))(*flags)
            code = nvrtc.nvrtcCompileProgram(program, len(flags), options)
            size = ctypes.c_size_t()
            if code:
                nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
                log = ctypes.create_string_buffer(size.value)
                nvrtc.nvrtcGetProgramLog(program, log)
                self._check(code, log.value.decode(errors="replace"))
            self._check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
            binary = ctypes.create_string_buffer(size.value)
            self._check(nvrtc.nvrtcGetCUBIN(program, binary))
            return binary.raw
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


class Nvcc:
    """The compiler of the CUDA toolkit."""

    def __init__(self, path: str) -> None:
        self.path = path
        said = self._run([path, "--version"])
        self.version = "nvcc " + said.strip().splitlines()[-1]

    @staticmethod
    def _run(command: list[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise CompileError(f"{command[0]} does not run: {error}") from error
        if done.returncode:
            raise CompileError(f"{command[0]} fails:\n{(done.stderr or done.stdout).strip()}")
        return done.stdout

    def compile(self, source: str, headers: Mapping[str, str], arch: int) -> bytes:
        """See `Compiler`."""
        with tempfile.TemporaryDirectory(prefix="qcore-marlin-") as name:
            folder = Path(name)
            for header, text in headers.items():
                path = folder / header
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            (folder / "marlin.cu").write_text(source, encoding="utf-8")
            out = folder / "marlin.cubin"
            target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
            command = [self.path, FLAGS[0], "-O3", target, f"-I{folder}", "-cubin"]
            self._run([*command, str(folder / "marlin.cu"), "-o", str(out)])
            return out.read_bytes()


@lru_cache(maxsize=1)
def find_compiler() -> Compiler | None:
    """The first that works; None where there is none."""
    for library in _nvrtc_libraries():
        try:
            return Nvrtc(library)
        except (OSError, AttributeError, CompileError):
            continue
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    for path in (nvcc, shutil.which("nvcc")):
        if path is not None:
            try:
                return Nvcc(path)
            except CompileError:
                continue
    return None


def _nvrtc_libraries() -> list[str]:
    """NVRTC in NVIDIA's Python packages, the newest first, and in the system's folders."""
    found: list[str] = []
    for entry in sys.path:
        folder = Path(entry) / "nvidia"
        if folder.is_dir():
            found += map(str, folder.glob("*/lib/libnvrtc.so.*"))
    plain = [path for path in found if ".alt." not in path]
    system = ctypes.util.find_library("nvrtc")
    return sorted(plain, key=lambda path: path.rsplit(".so.", 1)[1], reverse=True) + (
        [system] if system else []
    )
