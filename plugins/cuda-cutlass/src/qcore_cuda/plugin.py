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


def _spec(
    name: str,
    kernel_type: str,
    module: str,
    description: str,
    *,
    priority: int = Priority.VENDOR,
    backend: str = "cutlass",
    min_capability: int = 80,
    batch_invariant: bool = False,
) -> KernelSpec:
    return KernelSpec(
        name=name,
        kernel_type=kernel_type,
        platforms=(Platform.CUDA,),
        entry=f"qcore_cuda.kernels.{module}:{name}",
        priority=priority,
        backend=backend,
        min_capability=min_capability,
        batch_invariant=batch_invariant,
        evidence=Evidence.EXECUTED,
        description=description,
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
            "cutlass": "scaled products: CUTLASS on SM90, mma.sync on every other generation",
        },
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """All kernels."""
    return [
        _spec(
            "ExllamaLinearKernel",
            "mp",
            "exllama",
            "2, 3, 4 and 8 bits, any group size, zero points, g_idx",
            backend="exllama",
        ),
        _spec(
            "CutlassInt8ScaledMMLinearKernel",
            "int8",
            "cutlass_int8",
            "static or dynamic, symmetric or not; exact 32-bit integer sums",
            batch_invariant=True,
        ),
        _spec(
            "CutlassFP8ScaledMMLinearKernel",
            "fp8",
            "cutlass_fp8",
            "tensor, channel and token scales, static and dynamic; sums in the tensor core",
            min_capability=89,
        ),
        _spec(
            "CutlassFp8BlockScaledMMKernel",
            "fp8_block",
            "cutlass_fp8_block",
            "128x128 blocks of weights, 1x128 of activations; float32 sums of blocks",
            min_capability=89,
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
