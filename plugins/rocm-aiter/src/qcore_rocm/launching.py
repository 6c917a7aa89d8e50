"""Launch the kernels of ``csrc/kernels.hip``: their arguments, and who runs them.

On an AMD GPU `HipLauncher` does. Tests put another in its place (`stand_in`), which runs the same
kernels on a CPU or an NVIDIA GPU; nothing else of the plugin knows the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import Protocol

import torch
from qcore.errors import ConfigError

from qcore_rocm import driver

__all__ = [
    "FLOAT_TYPES",
    "W4A16",
    "BlockScaledMM",
    "HipLauncher",
    "Launcher",
    "QuantizeGroups",
    "QuantizeRows",
    "ScaledMM",
    "address",
    "arch_of",
    "launch",
    "stand_in",
    "stands_in",
]

FLOAT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""``FloatType`` of ``csrc/gpu_runtime.h``."""

_WAVES = 4


class QuantizeRows(Structure):
    """Of ``csrc/quantize_rows.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "codes", "scale", "zero", "bound")),
        ("x_stride", c_int64),
        *((name, c_int32) for name in ("K", "K_padded", "is_static")),
    )


class ScaledMM(Structure):
    """Of ``csrc/scaled_mm.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("a", "b", "a_scale", "b_scale", "a_zero", "b_sum")),
        *((name, c_void_p) for name in ("bias", "out")),
        *((name, c_int32) for name in ("M", "N", "K", "a_scale_step", "b_scale_step")),
        *((name, c_int32) for name in ("a_zero_step", "bias_type", "out_type")),
    )


class QuantizeGroups(Structure):
    """Of ``csrc/quantize_rows.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "codes", "scale")),
        ("x_stride", c_int64),
        *((name, c_int32) for name in ("M", "K", "groups")),
    )


class BlockScaledMM(Structure):
    """Of ``csrc/scaled_mm.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("a", "b", "a_scale", "b_scale", "bias", "out")),
        *((name, c_int32) for name in ("M", "N", "K", "block_rows", "bias_type", "out_type")),
    )


class W4A16(Structure):
    """Of ``csrc/w4a16.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "codes", "scale", "zero", "bias", "out")),
        ("x_stride", c_int64),
        *((name, c_int32) for name in ("M", "N", "K", "group", "groups", "all_zero")),
        *((name, c_int32) for name in ("bias_type", "out_type")),
    )


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's data begin; None for None."""
    return None if tensor is None else tensor.data_ptr()


class Launcher(Protocol):
    """Who runs kernels.

    Attributes:
        arch: whose instructions and 8-bit floats: ``gfx942``. None for those of the device.
    """

    arch: str | None

    def launch(
        self, kernel: str, args: Structure, grid: tuple[int, int], device: torch.device
    ) -> None:
        """Run ``kernel`` on ``grid`` blocks, on the current stream of ``device``."""


class HipLauncher:
    """Runs the wheel's code objects by HIP, each loaded once on each device."""

    arch: str | None = None

    def __init__(self) -> None:
        self._functions: dict[tuple[int, str], int] = {}
        self._modules: dict[int, int] = {}
        self._archs: dict[int, str] = {}

    def arch_of(self, device: torch.device) -> str:
        """The architecture of a device."""
        index = device.index or 0
        if index not in self._archs:
            properties = torch.cuda.get_device_properties(index)
            self._archs[index] = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
        return self._archs[index]

    def launch(
        self, kernel: str, args: Structure, grid: tuple[int, int], device: torch.device
    ) -> None:
        """See `Launcher`."""
        index = device.index or 0
        hip = driver.hip()
        with torch.cuda.device(index):
            function = self._functions.get((index, kernel))
            if function is None:
                function = self._find(index, kernel, device)
            wave = 32 if self.arch_of(device).startswith("gfx1") else 64
            stream = torch.cuda.current_stream(index).cuda_stream
            hip.launch(function, grid, wave * _WAVES, stream, args)

    def _find(self, index: int, kernel: str, device: torch.device) -> int:
        from qcore_rocm import library

        hip = driver.hip()
        if index not in self._modules:
            self._modules[index] = hip.load(library.code_object(self.arch_of(device)))
        function = hip.function(self._modules[index], kernel)
        self._functions[index, kernel] = function
        return function


_hip = HipLauncher()
_stand_in: Launcher | None = None


def stands_in() -> bool:
    """Whether something runs the kernels in place of an AMD GPU."""
    return _stand_in is not None


@contextmanager
def stand_in(launcher: Launcher) -> Iterator[None]:
    """Let ``launcher`` run the kernels, for tests."""
    global _stand_in
    before, _stand_in = _stand_in, launcher
    try:
        yield
    finally:
        _stand_in = before


def arch_of(device: torch.device) -> str | None:
    """The architecture whose kernels run on a device; None where none do."""
    if _stand_in is not None:
        return _stand_in.arch
    return _hip.arch_of(device) if device.type == "cuda" and torch.version.hip else None


def launch(kernel: str, args: Structure, grid: tuple[int, int], device: torch.device) -> None:
    """Run a kernel.

    Args:
        kernel: its name in ``csrc/kernels.hip``.
        args: its argument.
        grid: blocks, in x and y.
        device: of all tensors in ``args``.

    Raises:
        ConfigError: the device is no AMD GPU.
        MissingDependencyError: there is no code for it.
        DriverError: HIP refuses.
    """
    if _stand_in is not None:
        _stand_in.launch(kernel, args, grid, device)
        return
    if device.type != "cuda" or torch.version.hip is None:
        raise ConfigError(f"qcore_rocm: tensors are on {device}; an AMD GPU is needed")
    _hip.launch(kernel, args, grid, device)
