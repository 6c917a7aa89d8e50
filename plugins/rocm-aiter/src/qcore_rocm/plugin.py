"""What qcore-rocm brings, as the core's hooks ask for it. Loads no library."""

from __future__ import annotations

from collections.abc import Sequence

from qcore.plugin import (
    API_VERSION,
    DoctorLine,
    Evidence,
    KernelSpec,
    Platform,
    PluginInfo,
    Priority,
    hookimpl,
)

_MATRIX = ("gfx90a", "gfx942", "gfx950", "gfx1201")
_MATRIX_FP8 = ("gfx942", "gfx950", "gfx1201")


@hookimpl
def qcore_plugin() -> PluginInfo:
    """This plugin."""
    return PluginInfo(
        name="rocm",
        api_version=API_VERSION,
        backends={
            "qcore_rocm": "qcore's own HIP kernels, compiled into the wheel",
            "aiter": "AMD's AITER, where the package aiter is installed",
            "triton": "Triton, compiled where it runs; source shared with other plugins",
        },
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """All kernels."""
    return [*_hip()]


def _hip() -> list[KernelSpec]:
    """The kernels of ``csrc``."""
    described = {
        "HipW4A16LinearKernel": (
            "mp",
            "w4a16",
            _MATRIX,
            "4 bits, groups of a multiple of 8, zero points; MFMA or WMMA",
        ),
        "HipInt8ScaledMMLinearKernel": (
            "int8",
            "int8",
            _MATRIX,
            "static or dynamic, symmetric or not; exact 32-bit integer sums; MFMA or WMMA",
        ),
        "HipFP8ScaledMMLinearKernel": (
            "fp8",
            "fp8",
            _MATRIX_FP8,
            "tensor, channel and token scales, static and dynamic; e4m3fnuz on gfx942",
        ),
    }
    return [
        KernelSpec(
            name=name,
            kernel_type=kernel_type,
            platforms=(Platform.ROCM,),
            entry=f"qcore_rocm.kernels.hip_{module}:{name}",
            priority=Priority.VENDOR,
            backend="qcore_rocm",
            archs=archs,
            batch_invariant=kernel_type == "int8",  # integer sums are exact in any order
            evidence=Evidence.STAND_IN,
            description=description,
        )
        for name, (kernel_type, module, archs, description) in described.items()
    ]
