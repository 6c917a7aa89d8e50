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
from qcore.triton.specs import triton_specs

# Of Triton's kernels, by type: the least compute capability.
_TRITON = {"mp": 80, "int8": 80, "fp8_block": 89, "nvfp4": 80, "mxfp4": 80, "mxfp8": 80}


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
    evidence: Evidence = Evidence.EXECUTED,
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
        evidence=evidence,
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
            "marlin": "weights in Marlin's layout, by kernels that are generated for each scheme",
            "exllama": "weights in GPTQ's layout, activations in 16 bits",
            "cutlass": "scaled products: CUTLASS on SM90, mma.sync on every other generation",
            "torch": "torch._scaled_mm: what torch has",
            "deep_gemm": "DeepGEMM, where the package deep_gemm is installed",
            "fbgemm": "FBGEMM, where fbgemm-gpu-genai is installed",
            "humming": "Humming, where humming-kernels is installed; compiles where it runs",
            "triton": "Triton, compiled where it runs; source shared with other plugins",
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
        _spec(
            "CutlassNvFp4LinearKernel",
            "nvfp4",
            "cutlass_nvfp4",
            "weights and activations in NVFP4, on the tensor cores of SM100 and SM120",
            # Behind packages that have run there.
            priority=Priority.VENDOR - 10,
            min_capability=100,
            evidence=Evidence.COMPILED,
        ),
        _spec(
            "MarlinDynamicLinearKernel",
            "mp",
            "marlin_dynamic",
            "few rows by Marlin's kernels, many by a weight made whole",
            # Ahead of the kernels that it has for few rows.
            priority=Priority.VENDOR - 4,
            backend="marlin",
            min_capability=90,
        ),
        *_marlin(),
        *_small_floats(),
        *_torch_fp8(),
        *triton_specs(Platform.CUDA, _TRITON, evidence=Evidence.EXECUTED),
        KernelSpec(
            name="DeepGemmFp8BlockScaledMMKernel",
            kernel_type="fp8_block",
            platforms=(Platform.CUDA,),
            entry="qcore_cuda.kernels.deep_gemm:DeepGemmFp8BlockScaledMMKernel",
            # Behind CUTLASS's until measured beside it.
            priority=Priority.VENDOR - 10,
            backend="deep_gemm",
            min_capability=90,
            max_capability=90,
            modules=("deep_gemm",),
            evidence=Evidence.CONTRACT,
            description="128x128 blocks by the package deep_gemm, bfloat16 results",
        ),
        *_humming(),
        KernelSpec(
            name="FbgemmNvFp4LinearKernel",
            kernel_type="nvfp4",
            platforms=(Platform.CUDA,),
            entry="qcore_cuda.kernels.fbgemm:FbgemmNvFp4LinearKernel",
            priority=Priority.VENDOR - 20,
            backend="fbgemm",
            min_capability=100,
            max_capability=103,
            modules=("fbgemm_gpu",),
            evidence=Evidence.CONTRACT,
            description="weights and activations in NVFP4, bfloat16 results",
        ),
    ]


def _marlin() -> list[KernelSpec]:
    """Generated kernels for Marlin's layout: behind this library's others, ahead of Triton's."""
    described = [
        ("MarlinLinearKernel", "mp", "marlin", "4 and 8 bits, groups, zero points, g_idx, W4A8"),
        (
            "MarlinFP8ScaledMMLinearKernel",
            "fp8",
            "marlin_floats",
            "e4m3 weights made 16-bit floats in registers, also before sm_89",
        ),
        ("MarlinNvFp4LinearKernel", "nvfp4", "marlin_floats", "weight-only"),
        ("MarlinMxFp4LinearKernel", "mxfp4", "marlin_floats", "weight-only, bfloat16"),
        ("MarlinMxfp8LinearKernel", "mxfp8", "marlin_floats", "weight-only, bfloat16"),
    ]
    return [
        _spec(
            name,
            kernel_type,
            module,
            description,
            priority=Priority.VENDOR - 5,
            backend="marlin",
            min_capability=75,
        )
        for name, kernel_type, module, description in described
    ]


def _small_floats() -> list[KernelSpec]:
    """Weight-only layers of small floats by the kernels of packed integers."""
    first, ran = Priority.VENDOR, Evidence.EXECUTED
    described = [
        (
            "HopperFP8ScaledMMLinearKernel",
            "fp8",
            "e4m3 weights, tensor and channel scales",
            first,
            ran,
        ),
        # Behind what multiplies quantized activations, which it does not take.
        ("HopperFp8BlockScaledMMKernel", "fp8_block", "weight-only, blocks", first - 5, ran),
        ("HopperNvFp4LinearKernel", "nvfp4", "weight-only", first, ran),
        ("HopperMxFp4LinearKernel", "mxfp4", "weight-only, bfloat16", first, ran),
        ("HopperMxfp8LinearKernel", "mxfp8", "weight-only, bfloat16", first, ran),
    ]
    return [
        _spec(
            name,
            kernel_type,
            "small_floats",
            f"{description}; many rows on sm_90, few on all",
            priority=priority,
            backend="exllama",
            evidence=evidence,
        )
        for name, kernel_type, description, priority, evidence in described
    ]


def _humming() -> list[KernelSpec]:
    """Wrappers, behind what is compiled or in Triton: theirs is compiled where it first runs."""
    described = [
        ("HummingLinearKernel", "mp", "humming", "2 to 8 bits, groups from 16 on, zero points"),
        ("HummingFP8ScaledMMLinearKernel", "fp8", "humming_fp8", "weight-only, tensor and channel"),
    ]
    return [
        KernelSpec(
            name=name,
            kernel_type=kernel_type,
            platforms=(Platform.CUDA,),
            entry=f"qcore_cuda.kernels.{module}:{name}",
            priority=Priority.PORTABLE - 10,
            backend="humming",
            min_capability=75,
            modules=("humming",),
            evidence=Evidence.EXECUTED,
            description=description,
        )
        for name, kernel_type, module, description in described
    ]


def _torch_fp8() -> list[KernelSpec]:
    """Products of torch, the one with the most of its work inside first."""
    described = [
        ("PerTensor", 89, "one scale for each side"),
        ("RowWise", 90, "a scale for each row and channel; bfloat16 results"),
        ("ChannelWise", 89, "scales by channel and token, applied to a float32 product"),
    ]
    return [
        _spec(
            f"{name}TorchFP8ScaledMMLinearKernel",
            "fp8",
            "torch_fp8",
            description,
            priority=Priority.FALLBACK + 20 - 10 * index,
            backend="torch",
            min_capability=capability,
        )
        for index, (name, capability, description) in enumerate(described)
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
