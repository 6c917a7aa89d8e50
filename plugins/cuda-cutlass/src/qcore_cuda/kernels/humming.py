"""`HummingLinearKernel`: integer weights of 2 to 8 bits by Humming, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp

from qcore_cuda.kernels.gptq_packing import pack_dense_int32
from qcore_cuda.kernels.humming_support import HummingSupport, pad_both

__all__ = ["HummingLinearKernel"]

_LEAST_GROUP = 16
"""The inputs of one instruction of the tensor cores."""


class HummingLinearKernel(HummingSupport, MPLinearKernel):
    """Any width, groups of a power of two from 16 on or all inputs, zero points.

    Activations stay as they are. K is padded to whole groups and 128, N to 256. Scales become the
    activations' dtype.
    """

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """16-bit activations, groups that nest with Humming's tiles, no activation order."""
        K, N = config.partition_weight_shape
        group = cls.group_of(config)
        return answer(
            cls.layer_refusal(N, K, config.act_type, config.out_type),
            config.has_g_idx and "g_idx (activation order) is not implemented",
            group != 0
            and (group < _LEAST_GROUP or group & (group - 1) != 0)
            and f"group_size={group}; -1 and powers of two from {_LEAST_GROUP} on",
        )

    @staticmethod
    def group_of(config: MPLinearLayerConfig) -> int:
        """The group size as Humming has it: 0 for one group of all inputs."""
        return 0 if config.num_groups == 1 else config.group_size

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Humming's layout. Weights with neither bias nor zero points get zero points of 0."""
        c = self.config
        bits, group = c.weight_type.size_bits, self.group_of(c)
        N, K = c.out_features, c.in_features
        rows, columns = self.padded(N, K, group)
        groups = columns // group if group else 1
        codes, zero = unpack_mp(c, tensors)
        if c.weight_type.signed:
            codes = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
        form = {
            "weight": pack_dense_int32(pad_both(codes, rows, columns), bits, 1),
            "weight_scale": pad_both(tensors["weight_scale"].to(c.act_type), rows, groups),
        }
        zero_points = not c.weight_type.signed and not c.weight_type.has_bias()
        if zero_points:
            if not isinstance(zero, torch.Tensor):
                zero = codes.new_zeros((N, c.num_groups))
            zeros = pad_both(zero.to(torch.uint8), rows, groups)
            form["zero_point"] = pack_dense_int32(zeros, bits, 0)
        packed = self.transform(
            form,
            (N, K),
            c.act_type,
            group_size=group,
            b_dtype=f"uint{bits}",
            bs_dtype=str(c.act_type).removeprefix("torch."),
            weight_scale_type="group" if group else "channel",
            has_zero_point=zero_points,
        )
        self.names = {
            "weight": self.w_q_name,
            "weight_scale": self.w_s_name,
            "locks": "humming_locks",
        }
        named = {
            "weight_packed": packed["weight"],
            "weight_scale": packed["weight_scale"],
            "humming_locks": packed["locks"],
        }
        if zero_points:
            self.names["zero_point"] = "humming_zero_point"
            named["humming_zero_point"] = packed["zero_point"]
        return named

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply."""
        return self.multiply(layer, self.names, x, bias, self.config.out_features)
