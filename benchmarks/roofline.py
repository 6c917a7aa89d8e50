"""What this machine can do at most, measured by ``roofline.cpp``."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

__all__ = ["Roofline"]

_UNITS = (
    "fma_avx2",
    "words_avx2",
    "int8_avx2",
    "int16_avx2",
    "fma_avx512",
    "bf16_avx512",
    "vnni_avx512",
)


class Roofline:
    """Compiles the probes once; each call measures anew."""

    def __init__(self) -> None:
        source = Path(__file__).with_name("roofline.cpp")
        self._folder = tempfile.TemporaryDirectory()
        target = Path(self._folder.name, "roofline.so")
        flags = ["-O2", "-std=c++17", "-pthread", "-shared", "-fPIC"]
        command = [os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(target))
        self._library.read_bandwidth.restype = ctypes.c_double
        self._library.read_bandwidth.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._library.operations.restype = ctypes.c_double
        self._library.operations.argtypes = [ctypes.c_char_p, ctypes.c_int]

    def bandwidth(self, threads: int) -> float:
        """Bytes a second of reading memory, in 2 MiB pages."""
        return float(self._library.read_bandwidth(threads, 1 << 30))

    def operations(self, threads: int) -> dict[str, float]:
        """Operations a second of each unit that there is here; a multiply-add is two."""
        rates = {name: self._library.operations(name.encode(), threads) for name in _UNITS}
        return {name: float(rate) for name, rate in rates.items() if rate > 0}
