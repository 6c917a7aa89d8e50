"""`XPUW8A8FP8LinearKernel` and `XPUW8A16FP8LinearKernel`: e4m3 weights by tensor or channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig

from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUW8A8FP8LinearKernel", "XPUW8A16FP8LinearKernel"]


def _refuse_dtypes(config: FP8ScaledMMLinearLayerConfig) -> str | None:
    keys = (config.weight_quant_key, config.activation_quant_key)
    other = [key.dtype for key in keys if key is not None and key.dtype != torch.float8_e4m3fn]
    return f"{other[0]} is not implemented; float8_e4m3fn is" if other else None


class _Fp8(XpuSupport, FP8ScaledMMLinearKernel):
    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight's bytes, the view of [N, K] that they are; scales in float32, one or [N]."""
        packed = dict(tensors)
        packed["weight"] = tensors["weight"].t().contiguous().view(torch.uint8).t()
        packed["weight_scale"] = tensors["weight_scale"].to(torch.float32).reshape(-1)
        return packed


class XPUW8A8FP8LinearKernel(_Fp8):
    """Activations rounded to e4m3, by tensor or token, static or dynamic: ``fp8_gemm``."""

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """e4m3 on both sides."""
        key = config.activation_quant_key
        return answer(
            key is None and "weight-only layers are XPUW8A16FP8LinearKernel's",
            _refuse_dtypes(config),
            key is not None
            and key.scale.group_shape.is_per_group()
            and f"activations in groups ({key})",
            key is not None
            and key.scale.static
            and not key.scale.group_shape.is_per_tensor()
            and f"static activation scales by {key.scale.group_shape}; by tensor only",
        )

    def apply_scaled_mm(
        self,
        *,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor | None,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
        output_shape: list[int],
    ) -> torch.Tensor:
        """``(A * As) @ (B * Bs) + bias``."""
        assert As is not None  # `can_implement` refuses weight-only layers
        out = torch.ops.qcore_xpu.fp8_gemm.default(A.view(torch.uint8), B, out_dtype, As, Bs, bias)
        return out.reshape(output_shape)  # type: ignore[no-any-return]


class XPUW8A16FP8LinearKernel(_Fp8):
    """Activations as they are: ``fp8_gemm_w8a16``."""

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """Weight-only layers: a config that rounds activations means it."""
        return answer(
            config.activation_quant_key is not None
            and "the config rounds activations; this multiplies them as they are",
            _refuse_dtypes(config),
        )

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer."""
        weight, scale, _, _ = self._get_layer_params(layer)
        return torch.ops.qcore_xpu.fp8_gemm_w8a16.typed(  # type: ignore[no-any-return]
            x, weight, scale, bias, self.config.out_dtype
        )

    def apply_scaled_mm(
        self,
        *,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor | None,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
        output_shape: list[int],
    ) -> torch.Tensor:
        """``A @ (B * Bs) + bias``; there is no scale of A."""
        out = torch.ops.qcore_xpu.fp8_gemm_w8a16.typed(A, B, Bs, bias, out_dtype)
        return out.reshape(output_shape)  # type: ignore[no-any-return]
