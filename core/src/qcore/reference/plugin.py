"""The reference kernels, declared like those of any plugin."""

from __future__ import annotations

from collections.abc import Sequence

from qcore.plugin import (
    API_VERSION,
    Evidence,
    KernelSpec,
    Platform,
    PluginInfo,
    Priority,
    hookimpl,
)

_EVERYWHERE = tuple(Platform)


def _spec(
    name: str, kernel_type: str, backend: str, description: str, module: str = "kernels"
) -> KernelSpec:
    return KernelSpec(
        name=name,
        kernel_type=kernel_type,
        platforms=_EVERYWHERE,
        entry=f"qcore.reference.{module}:{name}",
        priority=Priority.REFERENCE,
        backend=backend,
        # Integer sums are exact in any order; float sums depend on how torch tiles M.
        batch_invariant=kernel_type == "int8",
        evidence=Evidence.EXECUTED,
        description=description,
    )


@hookimpl
def qcore_plugin() -> PluginInfo:
    """The core's own plugin."""
    return PluginInfo(
        name="reference",
        api_version=API_VERSION,
        backends={
            "reference": "plain PyTorch, any device: the fallback",
            "emulation": "plain PyTorch for the block formats of 4 and 8 bits",
        },
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """One kernel for every type."""
    return [
        _spec(
            "ReferenceMPLinearKernel",
            "mp",
            "reference",
            "dequantizes at each call; 2 to 8 bits, zero points, g_idx, any group size",
        ),
        _spec(
            "ReferenceInt8ScaledMMLinearKernel",
            "int8",
            "reference",
            "exact integer products in float64; static, dynamic, azp",
        ),
        _spec(
            "ReferenceFP8ScaledMMLinearKernel",
            "fp8",
            "reference",
            "float32 products of e4m3 values; tensor, channel, token scales; weight-only",
        ),
        _spec(
            "ReferenceFp8BlockScaledMMLinearKernel",
            "fp8_block",
            "reference",
            "float32 products of e4m3 values; scales per block of any shape",
        ),
        _spec(
            "EmulationNvFp4LinearKernel",
            "nvfp4",
            "emulation",
            "float32 products of values rounded to NVFP4",
        ),
        _spec(
            "EmulationMxFp4LinearKernel",
            "mxfp4",
            "emulation",
            "float32 products of MXFP4 weights; activations MXFP4, MXFP8 or as they are",
        ),
        _spec(
            "EmulationMxfp8LinearKernel",
            "mxfp8",
            "emulation",
            "float32 products of values rounded to MXFP8",
        ),
        _spec(
            "ReferenceGGUFLinearKernel",
            "gguf",
            "reference",
            "dequantizes at each call; Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS",
        ),
        _spec(
            "ReferenceCodebookLinearKernel",
            "codebook",
            "reference",
            "dequantizes at each call; 1 to 8 bits, any table and group size, offsets",
        ),
        _spec(
            "ReferenceMoeWNA16Kernel",
            "moe_wna16",
            "reference",
            "dequantizes one expert at a time; 2 to 8 bits, zero points, g_idx, any group size",
            module="moe",
        ),
        _spec(
            "ReferenceMoeMxfp4Kernel",
            "moe_mxfp4",
            "reference",
            "dequantizes one expert at a time",
            module="moe",
        ),
    ]
