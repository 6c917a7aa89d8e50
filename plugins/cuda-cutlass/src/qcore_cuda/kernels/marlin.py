"""`MarlinLinearKernel`: integer weights of 4 and 8 bits by generated kernels, for any rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.scalar_type import ScalarType
from qcore.kernels.base import Answer, answer
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp

from qcore_cuda.kernels.marlin_support import MarlinSupport
from qcore_cuda.kernels.padding import pad_to
from qcore_cuda.marlin.layout import pack_zeros, padded_shape

__all__ = ["MarlinLinearKernel"]

_NARROW = (torch.int8, torch.float8_e4m3fn)


class MarlinLinearKernel(MarlinSupport, MPLinearKernel):
    """4 and 8 bits, groups of 32, 64, 128 or all inputs, zero points, ``g_idx``, W4A8 and W8A8.

    K is padded to whole groups and 16 (32 for 8-bit activations), N to 64. Kernels that the library
    lacks are compiled when the weight is packed.
    """

    weight_rounding = "input"

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """Whether there is a kernel for such a layer, or one can be compiled."""
        return answer(cls.scheme_refusal(config, sorted_groups=not config.has_g_idx))

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
        self.a_8bit = c.act_type in _NARROW
        bias = 0 if c.zero_points else 1 << (self.bits - 1)
        self.b_type_id = ScalarType.uint(self.bits, bias).id
        self.out_features = c.out_features
        self.out_dtype = c.out_type or c.act_type
        self.group_size = -1 if c.num_groups == 1 else c.group_size
        self.names = {"weight": self.w_q_name, "weight_scale": self.w_s_name}
        if c.zero_points:
            self.names["zeros"] = self.w_zp_name or "weight_zero_point"
        if c.has_g_idx:
            self.names |= {"perm": "weight_perm", "g_idx": "weight_groups"}

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Marlin's layout.

        With activation order, ``weight_perm`` is the input that each row of codes belongs to, rows
        being sorted by group; ``weight_groups`` the group of each row where groups are not runs of
        one size. Either may be empty.
        """
        c = self.config
        codes, zero = unpack_mp(c, tensors)
        if c.weight_type.signed:
            codes = (codes.to(torch.int16) + (1 << (self.bits - 1))).to(torch.uint8)
        codes, scale = codes.t(), tensors["weight_scale"].t()
        zeros = zero.t() if isinstance(zero, torch.Tensor) else None
        group_size = self.group_size
        padded = padded_shape(c.in_features, c.out_features, group_size, self.a_8bit)
        perm = groups = torch.empty(0, dtype=torch.int32, device=scale.device)
        if c.has_g_idx:
            g_idx = tensors["weight_g_idx"].long()
            order = torch.argsort(g_idx, stable=True)
            codes = codes[order]
            used = self._runs(g_idx[order])
            if used is not None:
                scale = scale[used]
            else:
                group_size = -1  # of padding: to 16
                padded = padded_shape(c.in_features, c.out_features, -1, False)
                groups = pad_to(g_idx[order].to(torch.int32), 0, padded[0])
            perm = pad_to(order.to(torch.int32), 0, padded[0], value=-1)
        one_group = self.group_size == -1
        # Scales of one group meet sums in float32; those of groups weights of the input's type.
        scale = scale.to(torch.float32 if one_group and not len(groups) else self.out_dtype)
        grouped = bool(len(groups)) or not one_group
        packed = self.pack(
            codes.contiguous(), scale, self.bits, group_size, a_8bit=self.a_8bit, grouped=grouped
        )
        named = {
            "weight_packed": packed["weight"],
            "weight_scale": packed["weight_scale"],
            "marlin_workspace": packed["marlin_workspace"],
        }
        if c.has_g_idx:
            named |= {"weight_perm": perm, "weight_groups": groups}
        if zeros is not None:
            named["weight_zero_point"] = pack_zeros(
                pad_to(zeros.contiguous(), 1, padded[1]), self.bits, self.a_8bit
            )
        self.prepare(c, sorted_groups=not len(groups))
        return named

    def _runs(self, sorted_groups: torch.Tensor) -> torch.Tensor | None:
        """The groups that there are, if each but the last has `group_size` inputs."""
        used: torch.Tensor
        used, counts = torch.unique_consecutive(sorted_groups, return_counts=True)
        if self.group_size == -1:  # a part of a layer may still have inputs of several groups
            return used if len(used) == 1 else None
        if self.scheme_refusal(self.config) is not None:
            return None  # groups of that size have no kernel
        whole = (counts[:-1] == self.group_size).all() and counts[-1] <= self.group_size
        return used if bool(whole) and len(used) == self.config.num_groups else None

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` where the config says so, multiply."""
        a_scales = None
        if self.a_8bit:
            x, a_scales = self.quantize(x)
        return self.multiply(layer, x, bias, self.names, a_scales)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` as the 8-bit codes that the config wants, and the scale of each row."""
        if x.shape[-1] % 16:
            x = torch.nn.functional.pad(x, (0, -x.shape[-1] % 16))
        space = torch.ops.qcore_cuda
        if self.config.act_type == torch.int8:
            codes, scale, _ = space.dynamic_scaled_int8_quant.new(x.contiguous(), True)
        else:
            codes, scale = space.dynamic_per_token_scaled_fp8_quant.new(x.contiguous(), None)
        return codes, scale
