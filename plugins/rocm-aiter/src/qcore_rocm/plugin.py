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
from qcore.triton.specs import triton_specs

_MATRIX = ("gfx90a", "gfx942", "gfx950", "gfx1201")
_MATRIX_FP8 = ("gfx942", "gfx950", "gfx1201")
# Of Triton's kernels, by type: the architectures.
_TRITON = {
    "mp": _MATRIX,
    "int8": _MATRIX,
    "fp8_block": ("gfx950",),
    "nvfp4": _MATRIX,
    "mxfp4": _MATRIX,
    "mxfp8": _MATRIX,
}


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
    triton = triton_specs(Platform.ROCM, _TRITON, evidence=Evidence.STAND_IN)
    return [*_hip(), *_aiter(), *triton]


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
        "HipFp8BlockScaledMMKernel": (
            "fp8_block",
            "fp8_block",
            _MATRIX_FP8,
            "blocks of any number of outputs by 128 inputs, 1x128 of activations",
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


def _aiter() -> list[KernelSpec]:
    """Wrappers of AITER's functions. Ahead of our own kernels, which no AMD GPU has timed yet."""
    described = [
        (
            "AiterInt8ScaledMMLinearKernel",
            "int8",
            "aiter_int8",
            30,
            "symmetric; one scale each, or by token and output; N, K % 16",
        ),
        (
            "AiterPreshuffledPerTokenFp8ScaledMMLinearKernel",
            "fp8",
            "aiter_fp8",
            30,
            "scales by token and output, weights in the GPU's order; AITER's tuned shapes",
        ),
        (
            "AiterPerTokenFp8ScaledMMLinearKernel",
            "fp8",
            "aiter_fp8",
            20,
            "scales by token and output; AITER's tuned shapes",
        ),
        (
            "AiterFp8BlockScaledMMKernel",
            "fp8_block",
            "aiter_fp8_block",
            30,
            "128x128 blocks of weights, 1x128 of activations",
        ),
    ]
    return [
        KernelSpec(
            name=name,
            kernel_type=kernel_type,
            platforms=(Platform.ROCM,),
            entry=f"qcore_rocm.kernels.{module}:{name}",
            priority=Priority.VENDOR + ahead,
            backend="aiter",
            archs=("gfx942", "gfx950"),
            modules=("aiter",),
            evidence=Evidence.CONTRACT,
            description=description,
        )
        for name, kernel_type, module, ahead, description in described
    ]


@hookimpl
def qcore_doctor() -> Sequence[DoctorLine]:
    """Version, what was compiled, and whether it and AITER can run here."""
    from qcore_rocm import __version__, aiter_package, library

    archs = library.compiled_archs()
    compiled = f"{__version__}, {library.built()}"
    if archs:
        compiled = f"{__version__}, compiled for {', '.join(archs)}"
    why = library.unusable_here()
    compiled = compiled if why is None else f"{compiled}; {why}"
    lines = [DoctorLine("qcore-rocm", compiled, ok=why is None and bool(archs))]
    if why is None and aiter_package.installed():
        missing = next(filter(None, map(aiter_package.missing, aiter_package.FUNCTIONS)), None)
        lines.append(DoctorLine("aiter", missing or "its products can be called", missing is None))
    return lines
