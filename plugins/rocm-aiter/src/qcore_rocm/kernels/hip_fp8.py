"""`HipFP8ScaledMMLinearKernel`: e4m3 weights and activations by this plugin's own kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig

from qcore_rocm import library, ops
from qcore_rocm.kernels.fp8_kind import device_dtype, dtype_refusal, for_device
from qcore_rocm.kernels.padding import pad_inputs

__all__ = ["HipFP8ScaledMMLinearKernel"]


class HipFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Scales per tensor, channel and token, static and dynamic; any shape, any output.

    e4m3fn layers run exactly on gfx942 too: its e4m3fnuz has the half of every value, in weights
    and in activations, and the factors are in the scales.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether there is code for the device, and here whether HIP can run it."""
        return answer(library.refusal())

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """The device's e4m3; activations per tensor or per token."""
        key = config.activation_quant_key
        group = key.scale.group_shape if key is not None else None
        return answer(
            dtype_refusal(config),
            group is not None
            and not (group.is_per_tensor() or group.is_per_token())
            and f"activation scales per {group}; per tensor and per token are implemented",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N, K] with K padded to 16; the factors of e4m3fnuz in the scales."""
        key = self.config.activation_quant_key
        assert key is not None
        weight, factor = for_device(tensors["weight"].t().contiguous())
        if device_dtype() == torch.float8_e4m3fnuz:
            factor *= 2.0  # of activations, whose codes are made by e4m3fn's scale
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1) * factor
        kept = {"weight": pad_inputs(weight.view(torch.uint8), 16), "weight_scale": scale}
        if key.scale.static:
            halved = 0.5 if key.dtype == torch.float8_e4m3fnuz else 1.0
            kept["input_scale"] = tensors["input_scale"].reshape(1) * halved
        if "input_scale_ub" in tensors:
            kept["input_scale_ub"] = tensors["input_scale_ub"].reshape(1)
        return kept

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, multiply, scale; ``x`` may be strided."""
        weight, weight_scale, input_scale, upper_bound = self._get_layer_params(layer)
        key = self.config.activation_quant_key
        assert key is not None
        static = key.scale.static
        per_token = not static and key.scale.group_shape.is_per_token()
        return ops.FP8_LINEAR(  # type: ignore[no-any-return]
            x,
            weight,
            weight_scale,
            bias,
            input_scale if static else None,
            None if static else upper_bound,
            per_token,
            self.config.out_dtype,
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
        """See the base class; both sides in the device's e4m3."""
        assert As is not None  # `can_implement` refuses weight-only layers
        left = pad_inputs(A.view(torch.uint8), 16)
        right = pad_inputs(B.t().contiguous().view(torch.uint8), 16)
        out = ops.fp8_mm(left, right, As.reshape(-1), Bs.reshape(-1), bias, out_dtype)
        return out.reshape(output_shape)
