"""What qcore-cuda brings, as the core's hooks ask for it. Loads no library."""

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


@hookimpl
def qcore_plugin() -> PluginInfo:
    """This plugin."""
    return PluginInfo(
        name="cuda",
        api_version=API_VERSION,
        backends={
            "qcore_cuda": "qcore's own CUDA kernels",
            "exllama": "weights in GPTQ's layout, activations in 16 bits",
        },
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """All kernels."""
    return [
        KernelSpec(
            name="ExllamaLinearKernel",
            kernel_type="mp",
            platforms=(Platform.CUDA,),
            entry="qcore_cuda.kernels.exllama:ExllamaLinearKernel",
            priority=Priority.VENDOR,
            backend="exllama",
            min_capability=80,
            evidence=Evidence.COMPILED,
            description="2, 3, 4 and 8 bits, any group size, zero points, g_idx",
        ),
    ]


@hookimpl
def qcore_doctor() -> Sequence[DoctorLine]:
    """Version, what was compiled, and whether it can run here."""
    from qcore_cuda import __version__, library

    portable, specific = library.compiled_archs()
    archs = ", ".join([*(f"sm_{arch}" for arch in portable), *(f"sm_{arch}" for arch in specific)])
    why = library.unusable_here()
    compiled = f"{__version__}, compiled for {archs or 'nothing'}"
    return [
        DoctorLine("qcore-cuda", compiled if why is None else f"{compiled}; {why}", ok=why is None)
    ]
