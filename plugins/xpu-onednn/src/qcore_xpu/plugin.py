"""What qcore-xpu brings, as the core's hooks ask for it. Loads no library."""

from __future__ import annotations

import os
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

# Name, kernel type, module, description.
_KERNELS = (
    (
        "XPUW4A8IntLinearKernel",
        "mp",
        "w4",
        "4-bit weights, any group size, zero points, g_idx; activations rounded to int8 by token",
    ),
    (
        "XPUwNa16LinearKernel",
        "mp",
        "w4",
        "4-bit weights, any group size, zero points, g_idx; activations as they are",
    ),
    (
        "XPUW8A16IntLinearKernel",
        "mp",
        "w8",
        "weights of 2 to 8 bits as bytes, any shape, zero points up to 7 bits, g_idx",
    ),
    (
        "XPUInt8ScaledMMLinearKernel",
        "int8",
        "int8",
        "static or dynamic, symmetric or not",
    ),
    (
        "XPUW8A8FP8LinearKernel",
        "fp8",
        "fp8",
        "tensor, channel and token scales, static and dynamic",
    ),
    (
        "XPUW8A16FP8LinearKernel",
        "fp8",
        "fp8",
        "weight-only layers, tensor and channel scales",
    ),
    (
        "XPUFp8BlockScaledMMKernel",
        "fp8_block",
        "fp8_block",
        "blocks of any size, activations in groups or as they are; ragged shapes",
    ),
    (
        "XPUMxFp8LinearKernel",
        "mxfp8",
        "microscaling",
        "activations rounded to MXFP8 or as they are",
    ),
    (
        "XPUMxFp4LinearKernel",
        "mxfp4",
        "microscaling",
        "activations rounded to MXFP4, to MXFP8 or as they are",
    ),
    (
        "XPUNvFp4LinearKernel",
        "nvfp4",
        "nvfp4",
        "activations rounded to NVFP4, to e4m3 by token, or as they are",
    ),
)

_BEHIND = ("XPUW8A16IntLinearKernel",)
"""Those that take layers of another kernel too: this one weights of 4 bits, at twice the memory."""


@hookimpl
def qcore_plugin() -> PluginInfo:
    """This plugin."""
    return PluginInfo(
        name="xpu",
        api_version=API_VERSION,
        backends={
            "xpu": "oneDNN on Intel GPUs, and a SYCL kernel compiled where it runs for what "
            "oneDNN has not",
        },
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """All kernels; for CPU targets too where QCORE_XPU_STAND_IN asks for that."""
    stand_in = os.environ.get("QCORE_XPU_STAND_IN", "0") in ("1", "true", "on", "yes")
    platforms = (Platform.XPU, Platform.CPU) if stand_in else (Platform.XPU,)
    return [
        KernelSpec(
            name=name,
            kernel_type=kernel_type,
            platforms=platforms,
            entry=f"qcore_xpu.kernels.{module}:{name}",
            priority=Priority.VENDOR - (10 if name in _BEHIND else 0),
            backend="xpu",
            # Run on SYCL's CPU device, never on an Intel GPU.
            evidence=Evidence.STAND_IN,
            description=description,
        )
        for name, kernel_type, module, description in _KERNELS
    ]


@hookimpl
def qcore_doctor() -> Sequence[DoctorLine]:
    """Version, oneDNN, the devices that SYCL sees; or why the library does not load."""
    import torch

    from qcore_xpu import __version__, library

    why = library.unusable_here()
    if why is not None:
        return [DoctorLine("qcore-xpu", f"{__version__}; {why}", ok=False)]
    version = torch.ops.qcore_xpu.onednn_version()
    devices = torch.ops.qcore_xpu.devices().replace("\n", "; ") or "none"
    text = f"{__version__}, oneDNN {version}; SYCL devices: {devices}"
    if torch.xpu.is_available():
        return [DoctorLine("qcore-xpu", text)]
    return [
        DoctorLine(
            "qcore-xpu",
            f"{text}; torch {torch.__version__} sees no Intel GPU, so its kernels run only as a "
            f"stand-in on SYCL's CPU device ({library.STAND_IN}=1)",
            ok=False,
        )
    ]
