"""`FloatInt8ScaledMMLinearKernel`: exact int8 products from float32 products.

A product of two int8 numbers is at most 2**14, and float32 holds integers up to 2**24 exactly. So a
float32 product over 1024 inputs is exact, in whatever order it is summed up; the results of such
chunks are added up as int32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels import Int8ScaledMMLinearKernel, Int8ScaledMMLinearLayerConfig, answer
from qcore.numerics.activation_quant import dynamic_int8_quant, static_int8_quant

_CHUNK = 1 << 10
_MAX_K = 1 << 16
"""Up to here ``255 * 128 * K`` stays below 2**31."""


class FloatInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """W8A8, static or dynamic, with or without zero points.

    Packs ``weight`` into ``weight_float``, float32 [N, K], and with zero points adds ``azp_adj``,
    int32 [N]: the sum of each weight row.
    """

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        """Refuses fused layers with tensor scales, and K so large that int32 sums overflow."""
        K = config.in_features
        return answer(
            config.is_fused_module
            and not config.is_channelwise
            and "one scale for each part of a fused layer; give channel scales",
            K is not None and K > _MAX_K and f"K={K}; up to {_MAX_K} int32 sums cannot overflow",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight in float32; its scales as float32 [N] or [1]; what else there is, as it is."""
        packed = {name: tensor for name, tensor in tensors.items() if name != "weight"}
        packed["weight_float"] = tensors["weight"].to(torch.float32)
        packed["weight_scale"] = tensors["weight_scale"].to(torch.float32).reshape(-1)
        if not self.config.input_symmetric:
            packed["azp_adj"] = tensors["weight"].sum(dim=1, dtype=torch.int32)
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize, multiply exactly, scale, and round once."""
        rows = x.reshape(-1, x.shape[-1])
        if self.config.is_static_input_scheme:
            scale, azp = layer.input_scale, None
            if not self.config.input_symmetric:
                azp = layer.input_zero_point
            codes = static_int8_quant(rows, scale, azp)
        else:
            codes, scale, azp = dynamic_int8_quant(rows, self.config.input_symmetric)
        total = _exact_product(codes, layer.weight_float)
        if azp is not None:
            total = total - azp * layer.azp_adj
        out = total.to(torch.float32) * scale * layer.weight_scale
        if bias is not None:
            out = out + bias.to(torch.float32)
        return out.to(self.config.out_dtype or x.dtype).reshape(*x.shape[:-1], out.shape[-1])


def _exact_product(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """int8 [M, K] times float32 [N, K] that holds int8 values: int32 [M, N]."""
    total = torch.zeros(codes.shape[0], weight.shape[0], dtype=torch.int32, device=codes.device)
    for left, right in zip(
        codes.to(torch.float32).split(_CHUNK, dim=1), weight.split(_CHUNK, dim=1), strict=True
    ):
        total = total + (left @ right.t()).to(torch.int32)
    return total
