"""`HummingFP8ScaledMMLinearKernel`: FP8 weights, activations in 16 bits, where Humming is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig

from qcore_cuda.kernels.humming_support import HummingSupport, pad_both

__all__ = ["HummingFP8ScaledMMLinearKernel"]


class HummingFP8ScaledMMLinearKernel(HummingSupport, FP8ScaledMMLinearKernel):
    """e4m3 weights with a scale for the tensor or, beside bfloat16, for each output.

    Humming has scales of outputs in the activations' dtype; float16 would lose small ones.
    """

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """Weight-only layers of e4m3fn."""
        N, K = config.weight_shape
        key = config.weight_quant_key
        return answer(
            cls.layer_refusal(N, K, config.input_dtype, config.out_dtype),
            key.dtype != torch.float8_e4m3fn and "only float8_e4m3fn is implemented",
            config.activation_quant_key is not None
            and "quantized activations are not implemented; they are used as they are",
            not key.scale.group_shape.is_per_tensor()
            and config.input_dtype == torch.float16
            and "scales of outputs beside float16; a scale for the tensor, or bfloat16",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Humming's layout of the bytes."""
        dtype = self.config.input_dtype
        assert dtype is not None
        N, K = self.config.weight_shape
        rows, columns = self.padded(N, K, 0)
        # As bytes: torch fills, copies and compares those on every device.
        codes = pad_both(tensors["weight"].t().view(torch.uint8), rows, columns)
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1, 1)
        by_tensor = self.config.weight_quant_key.scale.group_shape.is_per_tensor()
        packed = self.transform(
            {
                "weight": codes.view(torch.int32),
                "weight_scale": scale.reshape(1)
                if by_tensor
                else pad_both(scale.to(dtype), rows, 1),
            },
            (N, K),
            dtype,
            b_dtype="float8e4m3",
            bs_dtype="float32" if by_tensor else str(dtype).removeprefix("torch."),
            weight_scale_type="tensor" if by_tensor else "channel",
            has_zero_point=False,
        )
        return {
            "weight": packed["weight"],
            "weight_scale": packed["weight_scale"],
            "humming_locks": packed["locks"],
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply."""
        held = self.layer_names()
        names = {
            "weight": held["weight"],
            "weight_scale": held["weight_scale"],
            "locks": "humming_locks",
        }
        return self.multiply(layer, names, x, bias, self.config.weight_shape[0])

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
        """Not how this kernel multiplies: a weight without its layer is in no layout of its own.

        Raises:
            TypeError: always.
        """
        raise TypeError("HummingFP8ScaledMMLinearKernel multiplies by apply_weights alone")
