"""`CPUInt8ScaledMMLinearKernel`: int8 weights and activations on any CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from qcore.kernels.base import Answer, answer, tensors_of
from qcore.kernels.scaled_mm import Int8ScaledMMLinearKernel
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig

from qcore_cpu import library

__all__ = ["MAX_K", "CPUInt8ScaledMMLinearKernel"]

MAX_K = 65536
"""Up to here a sum of products fits in 32 bits, whatever the values."""


class CPUInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """Static or dynamic, symmetric or not; integer products are exact for all codes.

    Activations are quantized within the op. A row's result does not depend on the other rows.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """Every config but a K beyond `MAX_K`."""
        K = config.in_features
        return answer(
            K is not None
            and K > MAX_K
            and f"K={K}; beyond {MAX_K} a 32-bit sum of products may overflow",
        )

    def __init__(
        self,
        c: Int8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        given = list(layer_param_names or ())
        super().__init__(c, [*given, *self.param_names[len(given) :]])
        library.load()
        weight, weight_scale, input_scale, azp, col_sums = self.layer_param_names
        self._held = [weight, weight_scale, col_sums]  # what a call takes from the layer
        if c.is_static_input_scheme:
            self._held += [input_scale] if c.input_symmetric else [input_scale, azp]
        self._symmetric, self._out_dtype = c.input_symmetric, c.out_dtype

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Four inputs of sixteen outputs side by side; as ``azp_adj`` the sum of each row."""
        weight, col_sums = torch.ops.qcore_cpu.int8_pack(tensors["weight"])
        kept = {
            "weight": weight,
            "weight_scale": tensors["weight_scale"].reshape(-1).contiguous(),
            self.layer_param_names[4]: col_sums,
        }
        if self.config.is_static_input_scheme:
            kept["input_scale"] = tensors["input_scale"]
            if not self.config.input_symmetric:
                kept["input_zero_point"] = tensors["input_zero_point"]
        return kept

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, multiply, scale; ``x`` may be strided."""
        weight, weight_scale, col_sums, *inputs = tensors_of(layer, *self._held)
        return torch.ops.qcore_cpu.int8_scaled_linear.default(  # type: ignore[no-any-return]
            x,
            weight,
            weight_scale,
            col_sums,
            bias,
            inputs[0] if inputs else None,
            inputs[1] if len(inputs) > 1 else None,
            self._symmetric,
            self._out_dtype,
        )
