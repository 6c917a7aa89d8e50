"""`XPUNvFp4LinearKernel`: e2m1 weights with e4m3 scales for 16 inputs, and one for all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.quant_key import QuantKey, kNvfp4Dynamic, kNvfp4DynamicToken
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_formats import NvFp4LinearKernel
from qcore.layers.microscaling import NvFp4LinearLayerConfig
from qcore.numerics.activation_quant import nvfp4_quant, scaled_fp8_quant

from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUNvFp4LinearKernel"]


class XPUNvFp4LinearKernel(XpuSupport, NvFp4LinearKernel):
    """Activations rounded to NVFP4 (``fp4_gemm``) or, by token, to e4m3 (``fp4_gemm_w4a8``), or as
    they are (``fp4_gemm_w4a16``).

    The product is made in float32, of codes and block scales as the file has them; the scales of
    whole tensors multiply it afterwards, before the bias is added and the result rounded.
    """

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> Answer:
        """NVFP4 activations, e4m3 by token, or none."""
        key = config.activation_quant_key
        return answer(
            key not in (None, kNvfp4Dynamic, kNvfp4DynamicToken)
            and not _is_fp8_by_token(key)
            and f"activations as {key}; NVFP4, float8_e4m3fn by token and as they are, are "
            "implemented"
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The codes as they are, their scales by inputs: bytes [K / 16, N], and the global ones.

        With a static scale of the activations, ``output_scale`` is the product of the two.
        """
        outer = tensors["weight_global_scale"].to(torch.float32).reshape(1)
        packed = {
            "weight": tensors["weight"].contiguous(),
            "weight_scale": tensors["weight_scale"].t().contiguous().view(torch.uint8),
            "output_scale": outer,
        }
        if self.config.activation_quant_key == kNvfp4Dynamic:
            inner = tensors["input_global_scale"].to(torch.float32).reshape(1)
            packed |= {"input_global_scale": inner, "output_scale": inner * outer}
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x`` as the config says, multiply, scale."""
        key, ops = self.config.activation_quant_key, torch.ops.qcore_xpu
        weight = tensor_of(layer, "weight").t()
        scale = tensor_of(layer, "weight_scale")
        outer = tensor_of(layer, "output_scale")
        rows = x.reshape(-1, x.shape[-1])
        if key is None:
            out = ops.fp4_gemm_w4a16.default(rows, weight, scale, torch.float32, None)
        elif _is_fp8_by_token(key):
            values, by_token = scaled_fp8_quant(rows, per_token=True)
            codes = values.view(torch.uint8)
            out = ops.fp4_gemm_w4a8.default(codes, weight, by_token, scale, torch.float32, None)
        else:
            if key == kNvfp4DynamicToken:
                amax = rows.to(torch.float32).abs().amax(-1, keepdim=True)
                given = torch.where(amax == 0, 1.0, amax / (448.0 * 6.0))
                outer = outer * given
            else:
                given = tensor_of(layer, "input_global_scale")
            codes, inner = nvfp4_quant(rows, given)
            inner = inner.view(torch.uint8)
            out = ops.fp4_gemm.default(codes, weight, inner, scale, torch.float32, None)
        out = out * outer if bias is None else torch.addcmul(bias.to(torch.float32), out, outer)
        out = out.to(self.config.out_dtype or x.dtype)
        return out.reshape(*x.shape[:-1], out.shape[-1])


def _is_fp8_by_token(key: QuantKey | None) -> bool:
    return (
        key is not None
        and key.dtype == torch.float8_e4m3fn
        and key.scale.group_shape.is_per_token()
        and not key.scale.static
    )
