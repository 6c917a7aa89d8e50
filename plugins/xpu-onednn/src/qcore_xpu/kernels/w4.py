"""`XPUwNa16LinearKernel` and `XPUW4A8IntLinearKernel`: integer weights of 4 bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.activation_quant import dynamic_int8_quant
from qcore.numerics.dequantize import unpack_mp
from qcore.numerics.packing import pack_int32

from qcore_xpu.kernels.activation_order import order_of_groups, refuse_order
from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUW4A8IntLinearKernel", "XPUwNa16LinearKernel"]

_TYPES = (scalar_types.uint4b8, scalar_types.uint4, scalar_types.int4)


class _Int4(XpuSupport, MPLinearKernel):
    """What the two have in common: `qcore_xpu.ops.int4` says the layout."""

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """4 bits, K of whole words, and N too where zero points are packed."""
        K, N = config.partition_weight_shape
        return answer(
            config.weight_type not in _TYPES
            and f"{config.weight_type} weights are not implemented; uint4b8, uint4 and int4 are",
            config.weight_type == scalar_types.uint4
            and not config.zero_points
            and "uint4 weights without zero points are not implemented",
            K % 8 != 0 and f"K={K}; multiples of 8 only",
            config.zero_points and N % 8 != 0 and f"N={N} with zero points; multiples of 8 only",
            refuse_order(config),
            cls.refuse_activations(config.act_type),
        )

    @classmethod
    def refuse_activations(cls, act_type: torch.dtype) -> str | None:
        """Why such activations are not implemented."""
        raise NotImplementedError

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Words of the outputs in order of groups, scales and zero points by group, the order.

        One zero point for all weights is the tensor ``weight_bias``.
        """
        config = self.config
        codes, zero = unpack_mp(config, tensors)
        if config.weight_type.signed:
            codes = (codes.to(torch.int16) + 8).to(torch.uint8)
            zero = 8
        packed: dict[str, torch.Tensor] = {}
        g_idx = tensors.get("weight_g_idx") if config.has_g_idx else None
        if g_idx is not None and config.num_groups > 1:
            order = order_of_groups(config, g_idx)
            if order is None:
                return self._pack_each_input(codes, zero, tensors, g_idx)
            packed["weight_g_idx"] = order.to(torch.int32)
            codes = codes[:, order]
        packed["weight_packed"] = pack_int32(codes, 4, dim=1)
        packed["weight_scale"] = tensors["weight_scale"].t().contiguous()
        if isinstance(zero, torch.Tensor):
            packed["weight_zero_point"] = pack_int32(zero.t(), 4, dim=1)
        else:
            packed["weight_bias"] = _single(zero, codes)
        return packed

    def _pack_each_input(
        self,
        codes: torch.Tensor,
        zero: torch.Tensor | int,
        tensors: Mapping[str, torch.Tensor],
        g_idx: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """A scale (and zero point) for each input; for files in which groups are not equal."""
        packed = {
            "weight_packed": pack_int32(codes, 4, dim=1),
            "weight_scale": tensors["weight_scale"][:, g_idx.long()].t().contiguous(),
        }
        if isinstance(zero, torch.Tensor):
            packed["weight_zero_point"] = pack_int32(zero[:, g_idx.long()].t(), 4, dim=1)
        else:
            packed["weight_bias"] = _single(zero, codes)
        return packed

    def _weights(
        self, layer: torch.nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor | None]:
        """B, B_scale, B_zp, group_size and g_idx of the ops."""
        scale = tensor_of(layer, self.w_s_name)
        K = self.config.in_features
        group = self.config.group_size
        if scale.shape[0] == K and self.config.num_groups != K:
            group = 1
        g_idx = getattr(layer, self.w_gidx_name, None) if self.w_gidx_name else None
        zeros = self.w_zp_name if self.config.zero_points and self.w_zp_name else "weight_bias"
        return tensor_of(layer, self.w_q_name).t(), scale, tensor_of(layer, zeros), group, g_idx


def _single(zero: int, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([zero], dtype=torch.int8, device=like.device)


class XPUwNa16LinearKernel(_Int4):
    """Activations as they are: ``int4_gemm_w4a16``."""

    weight_rounding = "input"

    @classmethod
    def refuse_activations(cls, act_type: torch.dtype) -> str | None:
        """16 or 32 bits."""
        if act_type in (torch.float16, torch.bfloat16, torch.float32):
            return None
        return f"{str(act_type).removeprefix('torch.')} activations are not implemented"

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer."""
        B, scale, zero, group, g_idx = self._weights(layer)
        return torch.ops.qcore_xpu.int4_gemm_w4a16.typed(  # type: ignore[no-any-return]
            x, B, bias, scale, zero, group, g_idx, self.config.out_type or x.dtype
        )


class XPUW4A8IntLinearKernel(_Int4):
    """Activations rounded to int8, a scale for each token: ``int4_gemm_w4a8``."""

    @classmethod
    def refuse_activations(cls, act_type: torch.dtype) -> str | None:
        """Those that the config rounds to int8, and no others."""
        if act_type == torch.int8:
            return None
        return (
            f"{str(act_type).removeprefix('torch.')} activations; this is for layers whose config "
            "rounds them to int8"
        )

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x``, then run the layer."""
        rows = x.reshape(-1, x.shape[-1])
        codes, input_scale, _ = dynamic_int8_quant(rows)
        B, scale, zero, group, g_idx = self._weights(layer)
        out = torch.ops.qcore_xpu.int4_gemm_w4a8.typed(
            codes, input_scale, None, B, scale, zero, group, g_idx, bias,
            self.config.out_type or x.dtype,
        )  # fmt: skip
        return out.reshape(*x.shape[:-1], out.shape[-1])  # type: ignore[no-any-return]
