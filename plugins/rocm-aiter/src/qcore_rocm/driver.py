"""A GPU driver's library, as far as it loads code objects and launches kernels, by ctypes.

HIP's functions and those of CUDA's driver take the same arguments in the same order, so one class
serves both. The plugin uses `HIP`. `CUDA` is there for the tests: with it this file, and kernels
compiled for CUDA, run on a machine that has an NVIDIA GPU.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from qcore.errors import MissingDependencyError, QcoreError

__all__ = ["CUDA", "HIP", "Driver", "DriverError", "DriverNames", "hip"]


class DriverError(QcoreError, RuntimeError):
    """A call of the driver's library failed."""


@dataclass(frozen=True)
class DriverNames:
    """What one driver's library and its functions are called.

    Attributes:
        libraries: file names to try, the first that loads is taken.
        module_load: load a code object from memory.
        get_function: find a kernel in it.
        launch: launch a kernel.
        device_count: how many devices there are.
        init: to call before all others; None if there is no such function.
    """

    libraries: tuple[str, ...]
    module_load: str
    get_function: str
    launch: str
    device_count: str
    init: str | None = None


HIP = DriverNames(
    libraries=("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"),
    module_load="hipModuleLoadData",
    get_function="hipModuleGetFunction",
    launch="hipModuleLaunchKernel",
    device_count="hipGetDeviceCount",
)
CUDA = DriverNames(
    libraries=("libcuda.so.1",),
    module_load="cuModuleLoadData",
    get_function="cuModuleGetFunction",
    launch="cuLaunchKernel",
    device_count="cuDeviceGetCount",
    init="cuInit",
)


class Driver:
    """A loaded library.

    Args:
        names: which.

    Raises:
        MissingDependencyError: it cannot be loaded, or lacks a function.
    """

    def __init__(self, names: DriverNames) -> None:
        self.names = names
        self._library = _open(names)
        try:
            self._load = getattr(self._library, names.module_load)
            self._get_function = getattr(self._library, names.get_function)
            self._launch = getattr(self._library, names.launch)
            self._count = getattr(self._library, names.device_count)
            if names.init is not None:
                self._check(names.init, getattr(self._library, names.init)(c_uint(0)))
        except AttributeError as error:
            raise MissingDependencyError(f"{self._library._name}: {error}") from error
        self._get_function.argtypes = (c_void_p, c_void_p, c_char_p)
        self._launch.argtypes = (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p)

    def devices(self) -> int:
        """How many devices there are.

        Raises:
            DriverError: the driver does not say.
        """
        count = c_int(0)
        self._check(self.names.device_count, self._count(ctypes.byref(count)))
        return count.value

    def load(self, code: bytes) -> int:
        """A code object, loaded on the current device; it stays loaded.

        Raises:
            DriverError: it is not for this device, or no code object.
        """
        module = c_void_p()
        self._check(self.names.module_load, self._load(ctypes.byref(module), c_char_p(code)))
        return module.value or 0

    def function(self, module: int, name: str) -> int:
        """A kernel of a loaded code object.

        Raises:
            DriverError: it has no such kernel.
        """
        function = c_void_p()
        done = self._get_function(ctypes.byref(function), module, name.encode())
        self._check(f"{self.names.get_function}({name})", done)
        return function.value or 0

    def launch(
        self,
        function: int,
        grid: tuple[int, int],
        threads: int,
        stream: int,
        args: ctypes.Structure,
    ) -> None:
        """Launch a kernel that takes one struct.

        Args:
            function: the kernel.
            grid: blocks, in x and y.
            threads: of a block.
            stream: the stream's handle.
            args: what the kernel takes; copied before this returns.

        Raises:
            DriverError: the launch failed.
        """
        pointers = (c_void_p * 1)(ctypes.addressof(args))
        done = self._launch(function, *grid, 1, threads, 1, 1, 0, stream, pointers, None)
        self._check(self.names.launch, done)

    @staticmethod
    def _check(what: str, code: int) -> None:
        if code != 0:
            known = _ERRORS.get(code)
            raise DriverError(f"{what} returned {code}{f' ({known})' if known else ''}")


# The same numbers in both (hip_runtime_api.h, cuda.h).
_ERRORS = {
    1: "invalid value",
    2: "out of memory",
    3: "not initialized",
    100: "no device",
    101: "invalid device",
    200: "invalid image",
    209: "no code for this device",
    500: "not found",
    719: "launch failure",
}


def _open(names: DriverNames) -> ctypes.CDLL:
    problems = []
    for candidate in _candidates(names):
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            problems.append(str(error))
    raise MissingDependencyError(f"{names.libraries[0]} cannot be loaded: {problems[-1]}")


def _candidates(names: DriverNames) -> Iterator[str]:
    # What torch has loaded already must be used: a second copy would know nothing of its streams.
    stem = names.libraries[0].partition(".")[0]
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        maps = ""
    yield from dict.fromkeys(re.findall(rf"/\S*/{stem}\.so[\d.]*", maps))
    beside = Path(torch.__file__).parent / "lib" / names.libraries[0]
    if beside.is_file():
        yield str(beside)
    yield from names.libraries


@lru_cache(maxsize=1)
def hip() -> Driver:
    """The machine's HIP, loaded once.

    Raises:
        MissingDependencyError: there is none.
    """
    return Driver(HIP)
