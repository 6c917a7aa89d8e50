"""What qcore-cpu brings, as the core's hooks ask for it. Loads no library."""

from __future__ import annotations

from collections.abc import Sequence

from qcore.plugin import (
    API_VERSION,
    DoctorLine,
    Evidence,
    KernelSpec,
    Numerics,
    Platform,
    PluginInfo,
    Priority,
    hookimpl,
)

from qcore_cpu.zentorch_support import NEEDED_FEATURES

# Above zentorch: as fast at many rows, faster at few, and with fewer conditions.
_PRIORITY = Priority.VENDOR + 50


def _own(
    name: str, kernel_type: str, module: str, description: str, *, approximate: bool = False
) -> KernelSpec:
    """A kernel of this plugin's library; all of them are batch-invariant."""
    return KernelSpec(
        name=name,
        kernel_type=kernel_type,
        platforms=(Platform.CPU,),
        entry=f"qcore_cpu.{module}:{name}",
        priority=_PRIORITY + (10 if approximate else 0),  # who allows it wants the faster one
        backend="qcore_cpu",
        batch_invariant=True,
        numerics=Numerics.APPROXIMATE if approximate else Numerics.EXACT,
        evidence=Evidence.EXECUTED,
        description=description,
    )


@hookimpl
def qcore_plugin() -> PluginInfo:
    """This plugin."""
    return PluginInfo(
        name="cpu",
        api_version=API_VERSION,
        backends={
            "qcore_cpu": "qcore's own CPU kernels: AVX2, AVX-512, AMX, NEON, plain C++",
            "zentorch": "AMD's library for Zen 4 and later; needs the package zentorch",
        },
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """Its own kernels, and two of zentorch's."""
    return [
        _own(
            "CPUWNA16LinearKernel",
            "mp",
            "wna16",
            "2 to 8 bits, any group size, zero points, g_idx; float32 sums, or integers with VNNI",
        ),
        _own(
            "CPUWNA8LinearKernel",
            "mp",
            "wna16_int8",
            "2 to 8 bits with int8 activations, a scale for each token; integer sums",
        ),
        _own(
            "CPUWNA16Int8LinearKernel",
            "mp",
            "wna16_int8",
            "2 to 8 bits; rounds activations to int8, a scale for each group",
            approximate=True,
        ),
        _own(
            "CPUInt8ScaledMMLinearKernel",
            "int8",
            "int8",
            "static or dynamic, symmetric or not; exact 32-bit integer sums",
        ),
        _own(
            "CPUGGUFLinearKernel",
            "gguf",
            "gguf",
            "every block type, no number rounded; float32 sums, or integers with VNNI",
        ),
        _own(
            "CPUGGUFInt8LinearKernel",
            "gguf",
            "gguf",
            "every block type; rounds activations to int8, a scale for each 16 or 32",
            approximate=True,
        ),
        _own(
            "CPUFP8ScaledMMLinearKernel",
            "fp8",
            "wfp_fp8",
            "e4m3 weights stay bytes; tensor, channel, token scales; weight-only; float32 sums",
        ),
        _own(
            "CPUFp8BlockScaledMMLinearKernel",
            "fp8_block",
            "wfp_fp8",
            "e4m3 weights stay bytes; scales per block of any shape; float32 sums",
        ),
        _own(
            "CPUMxfp8LinearKernel",
            "mxfp8",
            "wfp_blocks",
            "weights stay bytes; activations MXFP8 or as they are; float32 sums",
        ),
        _own(
            "CPUMxFp4LinearKernel",
            "mxfp4",
            "wfp_blocks",
            "weights stay in 4 bits; activations MXFP4, MXFP8 or as they are; float32 sums",
        ),
        _own(
            "CPUNvFp4LinearKernel",
            "nvfp4",
            "wfp_blocks",
            "weights stay in 4 bits; activations NVFP4 or as they are; float32 sums",
        ),
        _own(
            "CPUCodebookLinearKernel",
            "codebook",
            "wfp_codebook",
            "1 to 8 bits, any table and group size, offsets; float32 sums",
        ),
        _own(
            "CPUMoeWNA16Kernel",
            "moe_wna16",
            "moe",
            "2 to 8 bits, any group size, zero points, g_idx; float32 sums",
        ),
        _own(
            "CPUMoeMxfp4Kernel",
            "moe_mxfp4",
            "moe",
            "weights stay in 4 bits, no number rounded; float32 sums",
        ),
        KernelSpec(
            name="ZentorchWNA16LinearKernel",
            kernel_type="mp",
            platforms=(Platform.CPU,),
            entry="qcore_cpu.zentorch_wna16:ZentorchWNA16LinearKernel",
            priority=Priority.VENDOR,
            backend="zentorch",
            cpu_features=NEEDED_FEATURES,
            modules=("zentorch",),
            numerics=Numerics.APPROXIMATE,
            evidence=Evidence.EXECUTED,
            description="symmetric 4 bits, bfloat16; rounds dequantized weights to bfloat16",
        ),
        KernelSpec(
            name="ZentorchInt8ScaledMMLinearKernel",
            kernel_type="int8",
            platforms=(Platform.CPU,),
            entry="qcore_cpu.zentorch_int8:ZentorchInt8ScaledMMLinearKernel",
            priority=Priority.VENDOR,
            backend="zentorch",
            cpu_features=NEEDED_FEATURES,
            modules=("zentorch",),
            evidence=Evidence.EXECUTED,
            description="dynamic symmetric, float32 or bfloat16 activations",
        ),
    ]


@hookimpl
def qcore_decoding_passes() -> Sequence[str]:
    """Attention of the one query of a step."""
    return ["qcore_cpu.decoding:take_attention"]


@hookimpl
def qcore_doctor() -> Sequence[DoctorLine]:
    """Version, instruction sets, and whether zentorch can be used."""
    import torch

    from qcore_cpu import __version__, library, zentorch_support

    why = library.refusal()
    if why is not None:
        lines = [DoctorLine("qcore-cpu", why, ok=False)]
    else:
        compiled = torch.ops.qcore_cpu.compiled_isas().replace(",", ", ")
        lines = [
            DoctorLine(
                "qcore-cpu",
                f"{__version__}, uses {library.isa()} (has code for {compiled}), "
                f"{torch.get_num_threads()} threads",
            )
        ]
    if zentorch_support.is_installed():
        why = zentorch_support.refusal("zentorch_woq_linear", "zentorch_dynamic_qlinear")
        lines.append(DoctorLine("zentorch", why or "usable", ok=why is None))
    return lines
