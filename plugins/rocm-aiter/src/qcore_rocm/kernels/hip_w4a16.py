"""`HipW4A16LinearKernel`: weights of 4 bits, activations in 16, by this plugin's own kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp
from qcore.numerics.packing import pack_int32

from qcore_rocm import library, ops
from qcore_rocm.kernels.padding import pad_inputs

__all__ = ["HipW4A16LinearKernel"]


class HipW4A16LinearKernel(MPLinearKernel):
    """4 bits, signed or not, with or without zero points, groups of a multiple of 8; any shape."""

    weight_rounding = "input"

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether there is code for the device, and here whether HIP can run it."""
        return answer(library.refusal())

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """4 bits, activations in 16 bits, groups in order and of a multiple of 8."""
        bits, group = config.weight_type.size_bits, config.group_size
        return answer(
            config.act_type not in (torch.float16, torch.bfloat16)
            and f"{str(config.act_type).removeprefix('torch.')} activations are not implemented; "
            "float16 and bfloat16 are",
            bits != 4 and f"weights of {bits} bits are not implemented; 4 bits are",
            config.has_g_idx and "g_idx (activation order) is not implemented",
            config.num_groups > 1
            and group % 8 != 0
            and f"group_size={group}; multiples of 8 only, or one group",
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
        self.zero = 8 if c.weight_type.signed else c.weight_type.bias
        self.group = c.group_size if c.num_groups > 1 else -(-c.in_features // 8) * 8

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Codes as words along K, which is padded to 8; float32 scales; zero points as bytes."""
        codes, zero = unpack_mp(self.config, tensors)
        if self.config.weight_type.signed:
            codes = (codes.to(torch.int16) + self.zero).to(torch.uint8)
        packed = {
            "weight_packed": pack_int32(pad_inputs(codes, 8), 4, 1),
            "weight_scale": tensors["weight_scale"].to(torch.float32).contiguous(),
        }
        if isinstance(zero, torch.Tensor):
            packed["weight_zero_point"] = zero.contiguous()
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        zeros = tensor_of(layer, self.w_zp_name or "") if self.config.zero_points else None
        return ops.W4A16_LINEAR(  # type: ignore[no-any-return]
            x,
            tensor_of(layer, self.w_q_name),
            tensor_of(layer, self.w_s_name),
            zeros,
            bias,
            self.zero,
            self.group,
            self.config.out_type or x.dtype,
        )
