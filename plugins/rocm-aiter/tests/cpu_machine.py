"""`CpuMachine`: the kernels of ``csrc`` on the CPU, as one architecture runs them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import Structure
from pathlib import Path

import torch

__all__ = ["ARCHS", "CpuMachine", "compiler"]

ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1201")
_HERE = Path(__file__).parent


def compiler() -> str | None:
    """A C++ compiler, if there is one."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


class CpuMachine:
    """A `qcore_rocm.launching.Launcher`.

    Args:
        arch: whose waves, matrix instructions and 8-bit floats.
        folder: where to compile.
    """

    def __init__(self, arch: str, folder: Path) -> None:
        self.arch = arch
        built = folder / f"{arch}.so"
        source = _HERE / "cpu_executor"
        command = [compiler() or "c++", "-x", "c++", "-std=c++17", "-O3", "-fPIC", "-shared"]
        command += ["-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"]
        command += [f"-DQCORE_LIKE_{arch.upper()}"]
        command += [f"-I{source}", f"-I{_HERE.parent / 'csrc'}", str(source / "cpu_executor.cpp")]
        subprocess.run([*command, "-o", str(built)], check=True)
        self._library = ctypes.CDLL(str(built))
        self._library.qcore_cpu_launch.restype = ctypes.c_char_p
        self.wave = int(self._library.qcore_cpu_wave())
        self.launched: list[str] = []

    def launch(
        self, kernel: str, args: Structure, grid: tuple[int, int], device: torch.device
    ) -> None:
        """See `Launcher`."""
        assert device.type == "cpu"
        self.launched.append(kernel)
        run = self._library.qcore_cpu_launch
        problem = run(kernel.encode(), *grid, ctypes.byref(args))
        if problem is not None:
            raise RuntimeError(f"{kernel}: {problem.decode()}")
