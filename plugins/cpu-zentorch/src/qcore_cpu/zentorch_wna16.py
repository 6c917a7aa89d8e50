"""`ZentorchWNA16LinearKernel`: zentorch's 4-bit linear op, with a fallback for other layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.current_platform import current_platform
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import unpack_mp

from qcore_cpu import library, zentorch_support
from qcore_cpu.wna16 import CPUWNA16LinearKernel

__all__ = ["ZentorchWNA16LinearKernel", "woq_linear"]

_pinned: dict[int, torch.Tensor] = {}


@torch.library.custom_op("qcore_zentorch::woq_linear", mutates_args=())
def woq_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``zentorch_woq_linear`` that keeps what it was given.

    zentorch remembers weights and scales by their address for the life of the process, in every
    mode of its cache: after a weight was freed, another one at the same address would get the
    results of the first. Hence none is ever freed.

    Args:
        x: bfloat16 [M, K].
        weight: int32 [N, K/8], from ``zentorch_woq_repack_weight``.
        scale: float32 or bfloat16 [G, N].
        bias: [N].
    """
    if x.shape[0] == 0:
        return x.new_empty((0, weight.shape[0]))
    _pinned.setdefault(weight.data_ptr(), weight)
    _pinned.setdefault(scale.data_ptr(), scale)
    return torch.ops.zentorch.zentorch_woq_linear(x.contiguous(), weight.t(), scale, None, bias)  # type: ignore[no-any-return]


@woq_linear.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


class ZentorchWNA16LinearKernel(MPLinearKernel):
    """Symmetric 4 bits with bfloat16 activations by zentorch; the rest by `CPUWNA16LinearKernel`.

    zentorch rounds each dequantized weight to bfloat16 (a relative error of about 1.5e-3), and its
    weights are held until the process ends (see `woq_linear`).
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether this processor and this zentorch can run it, and the fallback's library loads."""
        if not current_platform.target.is_current:
            return True, None
        needed = ("zentorch_woq_linear", "zentorch_woq_repack_weight")
        return answer(zentorch_support.refusal(*needed), library.refusal())

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """Every layer that `CPUWNA16LinearKernel` can run: it takes those that zentorch cannot."""
        return CPUWNA16LinearKernel.can_implement(config)

    @staticmethod
    def zentorch_refusal(config: MPLinearLayerConfig) -> str | None:
        """Why a layer goes to the fallback; None where zentorch runs it."""
        K, size = config.in_features, config.group_size
        return answer(
            config.weight_type not in (scalar_types.uint4b8, scalar_types.int4)
            and f"{config.weight_type} weights; zentorch takes signed 4 bits",
            config.has_g_idx and "g_idx",
            config.act_type != torch.bfloat16 and "activations that are not bfloat16",
            config.out_type not in (None, torch.bfloat16) and "output that is not bfloat16",
            K % 8 != 0 and f"K={K}, not a multiple of 8",
            size != -1 and K % size != 0 and f"K={K}, not a multiple of group_size={size}",
        )[1]

    def __init__(
        self,
        c: MPLinearLayerConfig,
        w_q_param_name: str = "weight_packed",
        w_s_param_name: str = "weight_scale",
        w_zp_param_name: str | None = "weight_zero_point",
        w_gidx_param_name: str | None = "weight_g_idx",
    ) -> None:
        names = (w_q_param_name, w_s_param_name, w_zp_param_name, w_gidx_param_name)
        super().__init__(c, *names)
        self.fallback = CPUWNA16LinearKernel(c, *names) if self.zentorch_refusal(c) else None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """zentorch's int32 [N, K/8] and scales [G, N], or what the fallback packs."""
        if self.fallback is not None:
            return self.fallback.pack_weights(tensors)
        codes, zero = unpack_mp(self.config, tensors)
        signed = codes.to(torch.int8) - zero
        scale = tensors["weight_scale"]
        if scale.dtype == torch.float16:
            scale = scale.to(torch.float32)  # zentorch misreads float16
        # Not under the canonical names: a tensor of the old one's shape would be copied into it.
        return {
            "zentorch_weight": torch.ops.zentorch.zentorch_woq_repack_weight(signed.contiguous()),
            "zentorch_scale": scale.t().contiguous(),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer."""
        if self.fallback is not None:
            return self.fallback.apply_weights(layer, x, bias)
        rows = x.reshape(-1, self.config.in_features)
        if bias is not None:
            bias = bias.to(x.dtype)
        weight, scale = tensor_of(layer, "zentorch_weight"), tensor_of(layer, "zentorch_scale")
        out: torch.Tensor = woq_linear(rows, weight, scale, bias)
        return out.reshape(*x.shape[:-1], self.config.out_features)
