"""`CPUWNA16LinearKernel`: packed integer weights on any CPU, activations as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer, tensors_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES

from qcore_cpu import library
from qcore_cpu.large_pages import in_large_pages
from qcore_cpu.layout import stored_bits

__all__ = ["CPUWNA16LinearKernel"]


class CPUWNA16LinearKernel(MPLinearKernel):
    """2 to 8 bits, any group size, zero points, ``g_idx``; no more rounded than sums in float32.

    Where the processor multiplies bytes (VNNI), a group's products are added as integers, exactly.

    A row's result does not depend on the other rows of the batch: few rows decode the weights in
    registers and many rows share decoded weights, but both add the same numbers in one order.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """Every config with float activations."""
        return answer(
            config.act_type not in FLOAT_DTYPES
            and f"{str(config.act_type).removeprefix('torch.')} activations are not implemented; "
            "float32, float16 and bfloat16 are"
        )

    def __init__(
        self,
        c: MPLinearLayerConfig,
        w_q_param_name: str = "weight_packed",
        w_s_param_name: str = "weight_scale",
        w_zp_param_name: str | None = "weight_zero_point",
        w_gidx_param_name: str | None = "weight_g_idx",
    ) -> None:
        super().__init__(c, w_q_param_name, w_s_param_name, w_zp_param_name, w_gidx_param_name)
        library.load()
        self.stored_bits = stored_bits(c.weight_type.size_bits)
        self.out_type = c.out_type
        self.shape = (c.in_features, c.out_features)
        self._held = (  # what a call takes from the layer
            self.w_q_name,
            self.w_s_name,
            "weight_zero",
            "weight_perm",
            "weight_chunks",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The layout of ``csrc/wna16_pack.cpp``; zero points and permutation may be empty."""
        config = self.config
        has_zero, has_g_idx = config.zero_points, config.has_g_idx
        packed, scale, zero, perm, chunks = torch.ops.qcore_cpu.wna16_pack(
            tensors["weight_packed"].contiguous(),
            tensors["weight_scale"].contiguous(),
            tensors["weight_zero_point"].contiguous() if has_zero else None,
            tensors["weight_g_idx"].contiguous() if has_g_idx else None,
            config.weight_type.size_bits,
            0 if config.weight_type.signed else config.weight_type.bias,
            config.group_size,
            config.in_features,
        )
        made = {
            "weight_packed": packed,
            "weight_scale": scale,
            "weight_zero": zero,
            "weight_perm": perm,
            "weight_chunks": chunks,
        }
        return in_large_pages(made, packed="weight_packed")

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        return torch.ops.qcore_cpu.wna16_linear.default(  # type: ignore[no-any-return]
            x,
            *tensors_of(layer, *self._held),
            bias,
            self.stored_bits,
            *self.shape,
            self.out_type,
        )
