"""`HipInt8ScaledMMLinearKernel`: int8 weights and activations by this plugin's own kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import Int8ScaledMMLinearKernel
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig

from qcore_rocm import library, ops
from qcore_rocm.kernels.padding import pad_inputs

__all__ = ["HipInt8ScaledMMLinearKernel"]

_MAX_K = 65536  # up to here a sum of products, zero points subtracted, fits in 32 bits


class HipInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """Static or dynamic, symmetric or not; any shape, any output; integer sums are exact."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether there is code for the device, and here whether HIP can run it."""
        return answer(library.refusal())

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """Every layer whose sums fit in 32 bits."""
        K = config.in_features
        return answer(
            K is None and "the layer's shape is not known",
            K is not None
            and K > _MAX_K
            and f"K={K}; beyond {_MAX_K} a 32-bit sum of products may overflow",
        )

    def __init__(
        self,
        c: Int8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        given = list(layer_param_names or ())
        super().__init__(c, [*given, *self.param_names[len(given) :]])

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """[N, K] with K padded to 16, and for zero points the sum of each row."""
        weight = pad_inputs(tensors["weight"], 16)
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1)
        kept = {"weight": weight, "weight_scale": scale.contiguous()}
        config = self.config
        if config.is_static_input_scheme:
            kept["input_scale"] = tensors["input_scale"].reshape(1)
        if not config.input_symmetric:
            kept[self.layer_param_names[4]] = weight.sum(1, dtype=torch.int32)
            if config.is_static_input_scheme:
                kept["input_zero_point"] = tensors["input_zero_point"].reshape(1)
        return kept

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, multiply, scale; ``x`` may be strided."""
        weight, weight_scale, input_scale, input_azp, azp_adj = self._get_layer_params(layer)
        static, symmetric = self.config.is_static_input_scheme, self.config.input_symmetric
        return ops.INT8_LINEAR(  # type: ignore[no-any-return]
            x,
            weight,
            weight_scale,
            bias,
            input_scale if static else None,
            input_azp if static and not symmetric else None,
            None if symmetric else azp_adj,
            self.config.out_dtype or x.dtype,
        )
