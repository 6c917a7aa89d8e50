"""`TritonW4A16LinearKernel`: packed integer weights, activations in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp
from qcore.triton import ops
from qcore.triton.packing import pack_codes, pack_rows
from qcore.triton.support import TritonSupport

__all__ = ["TritonW4A16LinearKernel"]


class TritonW4A16LinearKernel(TritonSupport, MPLinearKernel):
    """4 and 8 bits, signed or not, any group size, with or without zero points; any shape."""

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """4 or 8 bits, activations in 16 bits, groups in order."""
        bits = config.weight_type.size_bits
        return answer(
            config.act_type not in (torch.float16, torch.bfloat16)
            and f"{str(config.act_type).removeprefix('torch.')} activations are not implemented; "
            "float16 and bfloat16 are",
            bits not in (4, 8) and f"weights of {bits} bits are not implemented; 4 and 8 bits are",
            config.has_g_idx and "g_idx (activation order) is not implemented",
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
        self.bits = c.weight_type.size_bits
        self.kind = f"int{self.bits}"
        self.zero = 1 << (self.bits - 1) if c.weight_type.signed else c.weight_type.bias
        self.group = 0 if c.num_groups == 1 else c.group_size

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """See `qcore.triton.packing`; zero points are a byte each."""
        codes, zero = unpack_mp(self.config, tensors)
        if self.config.weight_type.signed:
            codes = (codes.to(torch.int16) + self.zero).to(torch.uint8)
        packed = {
            "weight_packed": pack_codes(codes, self.bits),
            "weight_scale": pack_rows(tensors["weight_scale"]),
        }
        if isinstance(zero, torch.Tensor):
            packed["weight_zero_point"] = pack_rows(zero)
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        zeros = tensor_of(layer, self.w_zp_name or "") if self.config.zero_points else None
        return ops.PACKED_LINEAR(  # type: ignore[no-any-return]
            x,
            tensor_of(layer, self.w_q_name),
            tensor_of(layer, self.w_s_name),
            zeros,
            None,
            None,
            bias,
            self.kind,
            self.zero,
            self.group,
            "",
            self.config.out_features,
            self.config.out_type or x.dtype,
        )
