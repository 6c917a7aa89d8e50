"""`FlashInferFp8DeepGEMMDynamicBlockScaledKernel`: two products, by the number of rows.

The package ``deep_gemm`` is DeepSeek's, or SGLang's build of it (``sgl-deep-gemm`` on PyPI). What
is called is ``deep_gemm.fp8_gemm_nt``: both sides by rows, each with its float32 scales, bfloat16
out. Without the package `FlashInferFp8BlockScaledMMKernel` does any number of rows with the
DeepGEMM that FlashInfer brings along.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module

import torch
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_scaled_mm import (
    Fp8BlockScaledDynamicMMLinearKernel,
    Fp8BlockScaledMMLinearKernel,
)
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import group_fp8_quant
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_flashinfer.kernels.fp8_block import (
    FlashInferFp8BlockScaledMMKernel,
    block_refusal,
    packed_blocks,
)

__all__ = ["DeepGemmPart", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "deep_gemm_fault"]

_ARCH = 90


@lru_cache(maxsize=1)
def deep_gemm_fault() -> str | None:
    """Why ``deep_gemm.fp8_gemm_nt`` cannot be called as it is here; None where it can."""
    try:
        package = import_module("deep_gemm")
    except ModuleNotFoundError:
        return "deep_gemm is not installed (sgl-deep-gemm is a build of it)"
    except Exception as error:  # it compiles and looks for CUDA when it is imported
        return f"importing deep_gemm raised {type(error).__name__}: {error}"
    function = getattr(package, "fp8_gemm_nt", None)
    if function is None:
        return "this deep_gemm has no fp8_gemm_nt; version 2 and later have it"
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of a compiled function nothing can be read
        return None
    if names[:3] != ["a", "b", "d"]:
        return f"deep_gemm.fp8_gemm_nt takes ({', '.join(names)}); (a, b, d, ...) was expected"
    return None


@torch.library.custom_op("qcore_flashinfer::deep_gemm_nt", mutates_args=())
def deep_gemm_nt(
    a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    """``deep_gemm.fp8_gemm_nt`` of a [M, K] and b [N, K], bytes of e4m3: bfloat16 [M, N]."""
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16)
    if out.numel():
        left, right = (a.view(torch.float8_e4m3fn), a_scale), (b.view(torch.float8_e4m3fn), b_scale)
        import_module("deep_gemm").fp8_gemm_nt(left, right, out)
    return out


@deep_gemm_nt.register_fake
def _(
    a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16)


class DeepGemmPart(Fp8BlockScaledMMLinearKernel):
    """The composite's part for many rows. Not declared by itself."""

    apply_input_quant = False
    accumulation = FP8_SUM_UNIT

    @classmethod
    def get_min_capability(cls) -> int:
        """SM90."""
        return _ARCH

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether this is SM90, and on this machine whether the package has the function."""
        if compute_capability is None:
            compute_capability = current_platform.target.compute_capability
        return answer(
            compute_capability != _ARCH
            and f"scales as they are need compute capability {_ARCH}, this is {compute_capability}",
            current_platform.target.is_current and deep_gemm_fault(),
        )

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Blocks of 128 x 128, groups of 128, N % 64, K % 128, results in bfloat16."""
        return answer(
            block_refusal(config),
            config.out_dtype != torch.bfloat16
            and f"results in {str(config.out_dtype).removeprefix('torch.')}; they are bfloat16",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The bytes as they are, and scales in float32."""
        return packed_blocks(tensors)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` in groups, multiply, add the bias."""
        rows = x.reshape(-1, x.shape[-1])
        weight, scale = tensor_of(layer, "weight"), tensor_of(layer, "weight_scale_inv")
        out = self.apply_block_scaled_mm(rows, weight, None, scale)
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], weight.shape[0])

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply."""
        codes, scale = group_fp8_quant(A.contiguous(), 128)
        out: torch.Tensor = deep_gemm_nt(codes.view(torch.uint8), scale, B.view(torch.uint8), Bs)
        return out


class FlashInferFp8DeepGEMMDynamicBlockScaledKernel(Fp8BlockScaledDynamicMMLinearKernel):
    """FlashInfer's product below 32 rows, DeepGEMM's from there on; one copy of the weight."""

    accumulation = FP8_SUM_UNIT
    base_type = FlashInferFp8BlockScaledMMKernel
    fallback_type = DeepGemmPart

    @classmethod
    def get_min_capability(cls) -> int:
        """SM90."""
        return _ARCH
