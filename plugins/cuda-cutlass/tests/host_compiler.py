"""C++ of the plugin that needs no GPU, compiled for tests and loaded."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["COMPILER", "CSRC", "compiled"]

COMPILER = shutil.which("g++")
CSRC = Path(__file__).parents[1] / "csrc"


def compiled(source: str, *flags: str) -> ctypes.CDLL:
    """A library of ``source``, which may include what lies beside it in csrc/."""
    assert COMPILER is not None
    with tempfile.TemporaryDirectory(prefix="qcore-cuda-host-") as folder:
        file = Path(folder) / "source.cpp"
        file.write_text(source, encoding="utf-8")
        library = file.with_suffix(".so")
        # Libraries of one source share nothing: -fno-gnu-unique.
        options = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fno-gnu-unique"]
        options += [*flags, f"-I{CSRC}"]
        subprocess.run([COMPILER, *options, str(file), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))
