"""`HipFp8BlockScaledMMKernel`: block FP8 by this plugin's own kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig

from qcore_rocm import library, ops
from qcore_rocm.kernels.fp8_kind import device_dtype, dtype_refusal, for_device
from qcore_rocm.kernels.padding import pad_inputs

__all__ = ["HipFp8BlockScaledMMKernel"]


class HipFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Blocks of any number of outputs by 128 inputs, activations in groups of 128; any shape."""

    apply_input_quant = False

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether there is code for the device, and here whether HIP can run it."""
        return answer(library.refusal())

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """The device's e4m3; dynamic activations in groups of 128, blocks as wide."""
        key = config.activation_quant_key
        columns = config.weight_block[1]
        return answer(
            dtype_refusal(config),
            columns != 128 and f"weight blocks of {columns} inputs; 128 is implemented",
            key is not None and key.scale.static and "static activation scales",
            key is not None
            and not key.scale.static
            and key.scale.group_shape.col != 128
            and f"activations in groups of {key.scale.group_shape.col}; 128 is implemented",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N, K] with K padded to 128; the factors of e4m3fnuz in the scales."""
        weight, factor = for_device(tensors["weight"].contiguous())
        if device_dtype() == torch.float8_e4m3fnuz:
            factor *= 2.0  # of activations, whose codes are made by e4m3fn's scale
        scale = tensors["weight_scale_inv"].to(torch.float32) * factor
        packed = pad_inputs(weight.view(torch.uint8), 128)
        return {"weight": packed, "weight_scale_inv": scale.contiguous()}

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` in groups, multiply, scale; ``x`` may be strided."""
        weight, scale = tensor_of(layer, "weight"), tensor_of(layer, "weight_scale_inv")
        return self._run(x, weight, scale, bias)

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply; B and its scales as `pack_weights` makes them."""
        return self._run(A, B, Bs, None)

    def _run(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        return ops.FP8_BLOCK_LINEAR(  # type: ignore[no-any-return]
            x, weight, scale, bias, self.config.weight_block[0], self.config.out_dtype
        )
