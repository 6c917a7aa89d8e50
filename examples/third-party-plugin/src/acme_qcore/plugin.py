"""The hooks: what this plugin is and which kernels it brings. Imports none of them."""

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
    """Who we are, and the name by which users ask for our kernels."""
    return PluginInfo(
        name="acme",
        api_version=API_VERSION,
        backends={"acme": "weights widened once, when they are loaded; then torch's own products"},
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """Our kernels. Made of what torch has, so in the FALLBACK band: above the reference kernels."""
    return [
        KernelSpec(
            name="DequantizedMPLinearKernel",
            kernel_type="mp",
            platforms=(Platform.CPU,),
            entry="acme_qcore.mixed_precision:DequantizedMPLinearKernel",
            priority=Priority.FALLBACK,
            backend="acme",
            evidence=Evidence.EXECUTED,
            description="dequantizes at load, to the activations' dtype: 4 times W4's memory",
        ),
        KernelSpec(
            name="FloatInt8ScaledMMLinearKernel",
            kernel_type="int8",
            platforms=(Platform.CPU,),
            entry="acme_qcore.int8:FloatInt8ScaledMMLinearKernel",
            priority=Priority.FALLBACK,
            backend="acme",
            batch_invariant=True,  # integer sums are exact in any order
            evidence=Evidence.EXECUTED,
            description="exact int8 products by float32 products; 4 times the weights' memory",
        ),
    ]


@hookimpl
def qcore_doctor() -> Sequence[DoctorLine]:
    """What ``qcore doctor`` says about us; the one hook that may import what is slow to import."""
    import torch

    return [DoctorLine("threads", f"torch uses {torch.get_num_threads()} threads")]
