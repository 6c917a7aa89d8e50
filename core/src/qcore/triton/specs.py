"""`triton_specs`: what a plugin declares that stands for Triton's kernels on its platform."""

from __future__ import annotations

from collections.abc import Mapping

from qcore.errors import ConfigError
from qcore.plugin import Evidence, KernelSpec, Platform, Priority

__all__ = ["triton_specs"]

_ROUNDED = "weights made 16-bit floats in registers; activations rounded, or as they are"

# Kernel type: class, module of qcore.triton, description.
_KERNELS = {
    "mp": ("TritonW4A16LinearKernel", "w4a16", "4 and 8 bits, any group size, zero points"),
    "int8": (
        "TritonInt8ScaledMMLinearKernel",
        "int8",
        "static or dynamic, symmetric or not; exact 32-bit integer sums",
    ),
    "fp8_block": (
        "TritonFp8BlockScaledMMKernel",
        "fp8_block",
        "blocks of 32, 64 or 128 inputs, activations in groups of as many",
    ),
    "nvfp4": ("TritonNvFp4LinearKernel", "block_formats", _ROUNDED),
    "mxfp4": ("TritonMxFp4LinearKernel", "block_formats", _ROUNDED),
    "mxfp8": ("TritonMxfp8LinearKernel", "block_formats", _ROUNDED),
}


def triton_specs(
    platform: Platform,
    hardware: Mapping[str, int | tuple[str, ...]],
    *,
    evidence: Evidence,
    priority: int = Priority.PORTABLE,
) -> list[KernelSpec]:
    """Declare Triton's kernels for one platform. Imports none of them.

    Args:
        platform: on what hardware.
        hardware: by kernel type, the least compute capability or the only architectures. A type
            that is left out is not declared.
        evidence: what was done with them there.
        priority: of all of them.

    Raises:
        ConfigError: ``hardware`` names a type that no Triton kernel has.
    """
    unknown = sorted(set(hardware) - set(_KERNELS))
    if unknown:
        raise ConfigError(
            f"hardware names {', '.join(unknown)}; Triton's kernels are for {', '.join(_KERNELS)}"
        )
    specs = []
    for kernel_type, (name, module, description) in _KERNELS.items():
        if kernel_type not in hardware:
            continue
        where = hardware[kernel_type]
        specs.append(
            KernelSpec(
                name=name,
                kernel_type=kernel_type,
                platforms=(platform,),
                entry=f"qcore.triton.{module}:{name}",
                priority=priority,
                backend="triton",
                min_capability=where if isinstance(where, int) else None,
                archs=() if isinstance(where, int) else where,
                modules=("triton",),
                batch_invariant=kernel_type == "int8",  # integer sums are exact in any order
                evidence=evidence,
                description=description,
            )
        )
    return specs
