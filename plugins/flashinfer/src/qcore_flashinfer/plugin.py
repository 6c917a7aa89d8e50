"""What qcore-flashinfer brings, as the core's hooks ask for it. Imports nothing of FlashInfer."""

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
        name="flashinfer",
        api_version=API_VERSION,
        backends={
            "flashinfer": "FlashInfer: FP8 products, and the one of this name for each generation",
            "flashinfer_cutlass": "FlashInfer's products by CUTLASS",
            "flashinfer_trtllm": "FlashInfer's products by TensorRT-LLM's generated kernels",
            "flashinfer_cudnn": "FlashInfer's products by cuDNN",
            "flashinfer_cutedsl": "FlashInfer's products in CuTe DSL",
            "flashinfer_b12x": "FlashInfer's products of the warp's tensor cores of SM12x",
        },
    )


def _spec(
    name: str,
    kernel_type: str,
    module: str,
    backend: str,
    description: str,
    *,
    min_capability: int,
    max_capability: int | None = None,
    priority: int = Priority.VENDOR,
    modules: tuple[str, ...] = (),
    evidence: Evidence = Evidence.CONTRACT,
) -> KernelSpec:
    # As wide as any release might be: the classes ask the one that is installed. The module
    # flashinfer is not declared, because the class says in better words that it is missing.
    return KernelSpec(
        name=name,
        kernel_type=kernel_type,
        platforms=(Platform.CUDA,),
        entry=f"qcore_flashinfer.kernels.{module}:{name}",
        priority=priority,
        backend=backend,
        min_capability=min_capability,
        max_capability=max_capability,
        modules=modules,
        evidence=evidence,
        description=description,
    )


@hookimpl
def qcore_kernels() -> Sequence[KernelSpec]:
    """All kernels."""
    return [
        _spec(
            "FlashInferFP8ScaledMMLinearKernel",
            "fp8",
            "fp8",
            "flashinfer",
            "one scale for each side, static or dynamic; by CUTLASS, or by cuBLAS",
            min_capability=89,
            priority=Priority.VENDOR - 10,
            evidence=Evidence.EXECUTED,
        ),
        _spec(
            "FlashInferFp8BlockScaledMMKernel",
            "fp8_block",
            "fp8_block",
            "flashinfer",
            "128x128 blocks, activations in bfloat16; A and B exchanged below 32 rows",
            min_capability=90,
            max_capability=90,
            priority=Priority.VENDOR - 20,
            evidence=Evidence.EXECUTED,
        ),
        _spec(
            "FlashInferFp8DeepGEMMDynamicBlockScaledKernel",
            "fp8_block",
            "fp8_deep_gemm",
            "flashinfer",
            "128x128 blocks; FlashInfer's product below 32 rows, DeepGEMM's from there on",
            min_capability=90,
            max_capability=90,
            priority=Priority.VENDOR - 15,
            modules=("deep_gemm",),
        ),
        *_block_formats(),
    ]


# Name, module, backend, capabilities from and to, priority, what it runs on in words. b12x goes
# first where it is, as in FlashInfer's own choice for SM120; TensorRT-LLM's kernels and cuDNN,
# which bring binaries from elsewhere, are behind CUTLASS's.
_NVFP4 = [
    ("Cutlass", "flashinfer_cutlass", 100, None, 0, "by CUTLASS"),
    ("B12x", "flashinfer_b12x", 120, None, 5, "by CuTe DSL for SM120 and SM121"),
    ("Trtllm", "flashinfer_trtllm", 100, 109, -5, "by TensorRT-LLM's kernels; bfloat16 results"),
    ("Cudnn", "flashinfer_cudnn", 100, None, -10, "by cuDNN"),
]


def _block_formats() -> list[KernelSpec]:
    nvfp4 = [
        _spec(
            f"FlashInfer{which}NvFp4LinearKernel",
            "nvfp4",
            "nvfp4",
            backend,
            f"weights and activations in NVFP4, {how}",
            min_capability=least,
            max_capability=most,
            priority=Priority.VENDOR + offset,
        )
        for which, backend, least, most, offset, how in _NVFP4
    ]
    return [
        *nvfp4,
        _spec(
            "FlashInferMxFp4LinearKernel",
            "mxfp4",
            "mxfp4",
            "flashinfer_cutedsl",
            "weights and activations in MXFP4, by CuTe DSL",
            min_capability=100,
            max_capability=109,
        ),
        _spec(
            "FlashInferCutlassMxfp8LinearKernel",
            "mxfp8",
            "mxfp8",
            "flashinfer_cutlass",
            "weights and activations in MXFP8, by CUTLASS",
            min_capability=100,
        ),
    ]


@hookimpl
def qcore_doctor() -> Sequence[DoctorLine]:
    """Version, and which FlashInfer is installed."""
    from qcore_flashinfer import __version__, library

    installed = library.installed_version()
    if installed is None:
        text = f"{__version__}; flashinfer-python is not installed: pip install flashinfer-python"
        return [DoctorLine("qcore-flashinfer", text, ok=False)]
    text = f"{__version__}, flashinfer-python {installed}"
    why = library.fault()
    if why is not None:
        return [DoctorLine("qcore-flashinfer", f"{text}; {why}", ok=False)]
    if ".".join(installed.split(".")[:2]) not in library.CHECKED:
        text += f" (checked with {' and '.join(library.CHECKED)})"
    return [DoctorLine("qcore-flashinfer", text)]
