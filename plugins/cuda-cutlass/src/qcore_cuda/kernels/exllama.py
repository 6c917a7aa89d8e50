"""`ExllamaLinearKernel`: packed integer weights on NVIDIA GPUs, activations as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer, tensors_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp

from qcore_cuda import library
from qcore_cuda.kernels.gptq_packing import (
    in_lanes,
    pack_along_k,
    pack_along_n,
    pad_to_multiple,
)
from qcore_cuda.kernels.portable import PortableKernel

__all__ = ["ExllamaLinearKernel"]

_BITS = (2, 3, 4, 8)
_ACTIVATIONS = (torch.float16, torch.bfloat16)
# From here on a scale is infinite to the kernels that scale codes as subnormal numbers, which run
# weights without zero points (csrc/w4_codes.cuh). No quantizer makes such scales.
_LARGE_SCALE = 2.0**27


class ExllamaLinearKernel(PortableKernel, MPLinearKernel):
    """2, 3, 4 and 8 bits, any group size, zero points, ``g_idx``; layers of any shape.

    Few rows run on the weights as they are where a group is a multiple of 32 inputs, or the whole
    column; with activation order too, if inputs sorted by group make such groups. Otherwise the
    weight is dequantized for each call.
    """

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """2, 3, 4 or 8 bits, with activations in 16 bits."""
        return answer(
            config.act_type not in _ACTIVATIONS
            and f"{str(config.act_type).removeprefix('torch.')} activations are not implemented; "
            "float16 and bfloat16 are",
            config.weight_type.size_bits not in _BITS
            and f"weights of {config.weight_type.size_bits} bits are not implemented; "
            "2, 3, 4 and 8 bits are",
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
        self.bits = c.weight_type.size_bits
        self.zero = 1 << (self.bits - 1) if c.weight_type.signed else c.weight_type.bias
        one_group = c.num_groups == 1
        self.group_size = -(-c.in_features // 32) * 32 if one_group else c.group_size
        self.out_type = c.out_type or c.act_type
        self.in_features, self.out_features = c.in_features, c.out_features
        self._held = (  # what a call takes from the layer
            self.w_q_name,
            self.w_s_name,
            self.w_zp_name if c.zero_points else "weight_zeros",
            "weight_perm",
            "weight_groups",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """GPTQ's layout, shuffled, with K and N padded to 32; or that of `in_lanes`.

        ``weight_perm`` is the input that each row of codes belongs to, where rows are sorted by
        group; ``weight_groups`` the group of each row where groups are not runs of one size.
        ``weight_zeros``, of layers without zero points, are those of a layer that has scales of
        2^27 or more. Each of them may be empty.
        """
        codes, zero = unpack_mp(self.config, tensors)
        if self.config.weight_type.signed:
            codes = (codes.to(torch.int16) + self.zero).to(torch.uint8)
        codes = codes.t()
        scale = tensors["weight_scale"].t()
        zeros = zero.t() if isinstance(zero, torch.Tensor) else None
        perm = groups = torch.empty(0, dtype=torch.int32, device=scale.device)
        if self.config.has_g_idx:
            g_idx = tensors["weight_g_idx"].long()
            order = torch.argsort(g_idx, stable=True)
            used = self._runs(g_idx[order])
            if used is None:
                groups = self._padded(g_idx)
            else:
                perm = self._padded(order)
                codes, scale = codes[order], scale[used]
                zeros = zeros[used] if zeros is not None else None
        large = zeros is None and bool((scale.abs() >= _LARGE_SCALE).any())
        codes = pad_to_multiple(codes, 32, 32)
        by_lanes = zeros is None and not large and groups.numel() == 0 and self._runs_lanes(scale)
        packed = {
            "weight_packed": in_lanes(codes) if by_lanes else pack_along_k(codes, self.bits),
            "weight_scale": pad_to_multiple(scale, 1, 32),
            "weight_perm": perm,
            "weight_groups": groups,
        }
        if zeros is not None:
            packed["weight_zero_point"] = self._words(zeros)
        elif large:
            packed["weight_zeros"] = self._words(
                torch.full_like(scale, self.zero, dtype=torch.uint8)
            )
        else:
            packed["weight_zeros"] = torch.empty(0, dtype=torch.int32, device=scale.device)
        return packed

    def _runs_lanes(self, scale: torch.Tensor) -> bool:
        """Whether SM90's two kernels run the layer whatever its rows are, with words of lanes."""
        return (
            self.bits == 4
            and self.zero == 8
            and scale.dtype is self.config.act_type is self.out_type is torch.bfloat16
            and self.in_features % 64 == 0
            and (self.group_size >= self.in_features or self.group_size % 64 == 0)
            and scale.is_cuda
            and torch.cuda.get_device_capability(scale.device) == (9, 0)
        )

    def _words(self, zeros: torch.Tensor) -> torch.Tensor:
        return pack_along_n(pad_to_multiple(zeros, 1, 32), self.bits)

    def _runs(self, sorted_groups: torch.Tensor) -> torch.Tensor | None:
        """The groups that there are, if each but the last has `group_size` inputs."""
        used, counts = torch.unique_consecutive(sorted_groups, return_counts=True)
        if len(used) == 1:
            return used if self.config.num_groups == 1 else None
        whole = (counts[:-1] == self.group_size).all() and counts[-1] <= self.group_size
        return used if bool(whole) else None

    def _padded(self, index: torch.Tensor) -> torch.Tensor:
        """As int32, with -1 for the inputs by which K is padded."""
        fill = -len(index) % 32
        return torch.nn.functional.pad(index, (0, fill), value=-1).to(torch.int32)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        words, scale, zeros, perm, groups = tensors_of(layer, *self._held)
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(torch.float32)
        out: torch.Tensor = torch.ops.qcore_cuda.wna16_linear.default(
            x,
            words,
            scale,
            zeros,
            perm,
            groups,
            bias,
            self.bits,
            self.zero,
            self.group_size,
            self.in_features,
            self.out_features,
            self.out_type is not x.dtype,  # float32, of which `to` makes what is wanted
        )
        return out if out.dtype is self.out_type else out.to(self.out_type)
