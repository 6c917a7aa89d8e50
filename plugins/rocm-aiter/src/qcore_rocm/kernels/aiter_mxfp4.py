"""`AiterMxfp4LinearKernel`: MXFP4 weights and activations by AITER's ``gemm_a4w4``, on gfx950."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.quant_key import QuantKey, kMxfp4Dynamic
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_formats import MxFp4LinearKernel
from qcore.layers.microscaling import MxFp4LinearLayerConfig
from qcore.numerics.activation_quant import mxfp4_quant

from qcore_rocm import aiter_ops, aiter_package
from qcore_rocm.kernels.aiter_shuffle import shuffle_scale, shuffle_weight

__all__ = ["AiterMxfp4LinearKernel"]


class AiterMxfp4LinearKernel(MxFp4LinearKernel):
    """Weights and scales in the GPU's order; bfloat16 out.

    Activations are rounded as the config says, by torch: the rounding of scales in AITER's own
    quantizers has changed between its releases. A bias is added afterwards, since one of AITER's
    two implementations leaves it out.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the package has the function, on this machine."""
        return aiter_package.supported("gemm_a4w4")

    @classmethod
    def _supports_quant_scheme(
        cls, weight_key: QuantKey | None, activation_key: QuantKey | None
    ) -> bool:
        """Whether the kernel multiplies these two."""
        return activation_key == kMxfp4Dynamic

    @classmethod
    def can_implement(cls, config: MxFp4LinearLayerConfig) -> Answer:
        """MXFP4 on both sides, whole tiles of scales and of K, bfloat16 out."""
        key = config.activation_quant_key
        dtype = config.out_dtype or config.input_dtype
        return answer(
            key != kMxfp4Dynamic and f"activations as {key or 'they are'}; MXFP4 is implemented",
            _shape_refusal(config.weight_shape),
            dtype != torch.bfloat16
            and f"the output is {_name(dtype)}; aiter.gemm_a4w4 makes bfloat16",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Codes and scales in the GPU's order; see `qcore_rocm.kernels.aiter_shuffle`."""
        return {
            "weight": shuffle_weight(tensors["weight"].contiguous()),
            "weight_scale": shuffle_scale(tensors["weight_scale"]),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x``, multiply, add the bias."""
        weight, weight_scale = tensor_of(layer, "weight"), tensor_of(layer, "weight_scale")
        codes, scale = mxfp4_quant(x.reshape(-1, x.shape[-1]))
        out: torch.Tensor = aiter_ops.gemm_a4w4(codes, weight, shuffle_scale(scale), weight_scale)
        if bias is not None:
            out = (out + bias).to(out.dtype)
        return out.reshape(*x.shape[:-1], weight.shape[0])


def _shape_refusal(shape: tuple[int, int] | None) -> str | None:
    if shape is None:
        return "the layer's shape is not known"
    N, K = shape
    if N % 32 == 0 and K % 256 == 0:
        return None
    return f"N={N}, K={K}; multiples of 32 and of 256 only"


def _name(dtype: torch.dtype | None) -> str:
    return "not known" if dtype is None else str(dtype).removeprefix("torch.")
