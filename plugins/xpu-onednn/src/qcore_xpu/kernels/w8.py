"""`XPUW8A16IntLinearKernel`: integer weights of any width, as bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp

from qcore_xpu.kernels.activation_order import order_of_groups, refuse_order
from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUW8A16IntLinearKernel"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class XPUW8A16IntLinearKernel(XpuSupport, MPLinearKernel):
    """Activations as they are: ``int8_gemm_w8a16``.

    Zero points are taken from the codes when weights are packed. What is left of up to 7 bits fits
    a byte, and of 8 bits with the zero point in the middle. Any shape.
    """

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """All but bytes with zero points of their own."""
        act_type = str(config.act_type).removeprefix("torch.")
        return answer(
            config.weight_type == scalar_types.uint8
            and "uint8 weights are not implemented: without their zero points they need 9 bits",
            config.act_type not in _FLOATS and f"{act_type} activations are not implemented",
            refuse_order(config),
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N, K] in order of groups, their scales [groups, N], the order."""
        config = self.config
        codes, zero = unpack_mp(config, tensors)
        scale, group = tensors["weight_scale"], max(config.group_size, 1)
        g_idx = tensors.get("weight_g_idx") if config.has_g_idx else None
        of_input = torch.arange(config.in_features, device=codes.device) // group
        if config.num_groups == 1:
            of_input, g_idx = torch.zeros_like(of_input), None
        elif g_idx is not None:
            of_input = g_idx.long()
        if isinstance(zero, torch.Tensor):
            zero = zero.to(torch.int16)[:, of_input]
        values = (codes.to(torch.int16) - zero).to(torch.int8)
        packed = {}
        if g_idx is not None:
            order = order_of_groups(config, g_idx)
            if order is None:
                scale = scale[:, of_input]  # of each input
            else:
                packed["weight_g_idx"] = order.to(torch.int32)
                values = values[:, order]
        packed["weight_packed"] = values.contiguous()
        packed["weight_scale"] = scale.t().contiguous()
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer."""
        config, scale = self.config, tensor_of(layer, self.w_s_name)
        each = scale.shape[0] == config.in_features and config.num_groups != config.in_features
        g_idx = getattr(layer, self.w_gidx_name, None) if self.w_gidx_name else None
        return torch.ops.qcore_xpu.int8_gemm_w8a16.default(  # type: ignore[no-any-return]
            x,
            tensor_of(layer, self.w_q_name).t(),
            bias,
            scale,
            1 if each else config.group_size,
            g_idx,
            config.out_type or x.dtype,
        )
