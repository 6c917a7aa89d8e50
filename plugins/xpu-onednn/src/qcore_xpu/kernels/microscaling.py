"""`XPUMxFp8LinearKernel` and `XPUMxFp4LinearKernel`: e8m0 scales for 32 inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.quant_key import QuantKey, kMxfp4Dynamic, kMxfp8Dynamic
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel
from qcore.layers.microscaling import MxFp4LinearLayerConfig, Mxfp8LinearLayerConfig
from qcore.numerics.activation_quant import mxfp4_quant, mxfp8_quant

from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUMxFp4LinearKernel", "XPUMxFp8LinearKernel"]


class XPUMxFp8LinearKernel(XpuSupport, Mxfp8LinearKernel):
    """Activations rounded to MXFP8 (``fp8_gemm``), or as they are (``fp8_gemm_w8a16``)."""

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: Mxfp8LinearLayerConfig) -> Answer:
        """MXFP8 activations, or none."""
        key = config.activation_quant_key
        return answer(
            key not in (None, kMxfp8Dynamic)
            and f"activations as {key}; MXFP8 and as they are, are implemented"
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight's bytes, and its scales by inputs: [K / 32, N]."""
        return {
            "weight": tensors["weight"].contiguous().view(torch.uint8),
            "weight_scale": tensors["weight_scale"].t().contiguous(),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x`` as the config says, multiply."""
        weight = tensor_of(layer, "weight").t()
        scale = tensor_of(layer, "weight_scale")
        out_dtype = self.config.out_dtype or x.dtype
        if self.config.activation_quant_key is None:
            product = torch.ops.qcore_xpu.fp8_gemm_w8a16.typed
            return product(x, weight, scale, bias, out_dtype)  # type: ignore[no-any-return]
        codes, exponents = mxfp8_quant(x.reshape(-1, x.shape[-1]))
        out = torch.ops.qcore_xpu.fp8_gemm.default(
            codes.view(torch.uint8), weight, out_dtype, exponents, scale, bias
        )
        return out.reshape(*x.shape[:-1], out.shape[-1])  # type: ignore[no-any-return]


class XPUMxFp4LinearKernel(XpuSupport, MxFp4LinearKernel):
    """Activations rounded to MXFP4 (``fp4_gemm``) or to MXFP8 (``fp4_gemm_w4a8``), or as they are
    (``fp4_gemm_w4a16``)."""

    weight_rounding = "input"

    @classmethod
    def _supports_quant_scheme(
        cls, weight_key: QuantKey | None, activation_key: QuantKey | None
    ) -> bool:
        """Whether the kernel multiplies these two."""
        return activation_key in (None, kMxfp4Dynamic, kMxfp8Dynamic)

    @classmethod
    def can_implement(cls, config: MxFp4LinearLayerConfig) -> Answer:
        """MXFP4 or MXFP8 activations, or none."""
        key = config.activation_quant_key
        return answer(
            key not in (None, kMxfp4Dynamic, kMxfp8Dynamic)
            and f"activations as {key}; MXFP4, MXFP8 and as they are, are implemented"
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The codes as they are, and their scales by inputs: [K / 32, N]."""
        return {
            "weight": tensors["weight"].contiguous(),
            "weight_scale": tensors["weight_scale"].t().contiguous(),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x`` as the config says, multiply."""
        weight = tensor_of(layer, "weight").t()
        scale = tensor_of(layer, "weight_scale")
        out_dtype = self.config.out_dtype or x.dtype
        key, ops = self.config.activation_quant_key, torch.ops.qcore_xpu
        if key is None:
            return ops.fp4_gemm_w4a16.default(x, weight, scale, out_dtype, bias)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])
        if key == kMxfp8Dynamic:
            codes, exponents = mxfp8_quant(rows)
            codes, product = codes.view(torch.uint8), ops.fp4_gemm_w4a8.default
        else:
            codes, exponents = mxfp4_quant(rows)
            product = ops.fp4_gemm.default
        out = product(codes, weight, exponents, scale, out_dtype, bias)
        return out.reshape(*x.shape[:-1], out.shape[-1])  # type: ignore[no-any-return]
