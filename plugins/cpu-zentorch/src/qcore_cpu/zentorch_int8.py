"""`ZentorchInt8ScaledMMLinearKernel`: zentorch's dynamic int8 linear op."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.scaled_mm import Int8ScaledMMLinearKernel
from qcore.layers.base import dtype_name
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig

from qcore_cpu import zentorch_support

__all__ = ["ZentorchInt8ScaledMMLinearKernel", "dynamic_qlinear"]

_DTYPES = (torch.float32, torch.bfloat16)


@torch.library.custom_op("qcore_zentorch::dynamic_qlinear", mutates_args=())
def dynamic_qlinear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``zentorch_dynamic_qlinear`` of a weight whose whole memory is an argument.

    A prepacked weight says that it is int8 [N, K], but has more behind that in its storage: a copy
    of it would be made without, and be read beyond its end. Here it is flat and complete.

    Args:
        x: float32 or bfloat16 [M, K].
        weight: int8, one dimension: the storage of a prepacked weight.
        scale: float32 [N].
        bias: [N].
    """
    N, K = scale.shape[0], x.shape[1]
    if x.shape[0] == 0:
        return x.new_empty((0, N))
    out: torch.Tensor = torch.ops.zentorch.zentorch_dynamic_qlinear(
        x.contiguous(), weight[: N * K].view(N, K), scale, bias, is_weight_prepacked=True
    )
    # zentorch turns a row with a NaN or an infinity into zeros, which would hide it.
    return out + x.abs().amax(-1, keepdim=True) * 0


@dynamic_qlinear.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty((x.shape[0], scale.shape[0]))


class ZentorchInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """Dynamic symmetric activations, float32 or bfloat16.

    Weights are prepacked: of those that are not, zentorch keeps a copy by address, and returns the
    result of a weight that was freed for another one that was put in its place.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether this processor and this zentorch can run it."""
        if not current_platform.target.is_current:
            return True, None
        algorithm = os.environ.get("ZENDNNL_MATMUL_ALGO", "1")
        return answer(
            zentorch_support.refusal(
                "zentorch_dynamic_qlinear", "zentorch_weight_prepack_for_dynamic_qlinear"
            ),
            algorithm != "1"
            and f"ZENDNNL_MATMUL_ALGO={algorithm}: only algorithm 1 reads prepacked weights, "
            "the others misread them silently",
        )

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """Dynamic, symmetric, float32 or bfloat16 in and the same out."""
        given, out, shape = config.input_dtype, config.out_dtype, config.weight_shape
        return answer(
            config.is_static_input_scheme and "static activation scales; zentorch makes its own",
            not config.input_symmetric and "asymmetric activations; zentorch's are symmetric",
            config.is_fused_module
            and not config.is_channelwise
            and "a fused layer's tensor scales need the parts' widths; give channel scales",
            shape is None and "weight_shape is not known; zentorch's layout depends on it",
            # The layout is filled up then, with bytes that zentorch never writes.
            shape is not None
            and (shape[0] % 16 != 0 or shape[1] % 4 != 0)
            and f"N={shape[0]}, K={shape[1]}; N must be a multiple of 16, K of 4",
            given not in _DTYPES
            and f"{dtype_name(given)} activations; zentorch takes float32 and bfloat16",
            out not in (None, given)
            and f"{dtype_name(out)} output; zentorch's output has the input's dtype",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """zentorch's blocked layout, with all of its memory; one float32 scale for each output."""
        weight = tensors["weight"].contiguous()
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1)
        prepacked = torch.ops.zentorch.zentorch_weight_prepack_for_dynamic_qlinear(weight)
        flat = torch.empty(0, dtype=torch.int8).set_(prepacked.untyped_storage())
        return {
            "zentorch_weight": flat,
            "weight_scale": scale.expand(weight.shape[0]).contiguous(),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer."""
        weight, scale = tensor_of(layer, "zentorch_weight"), self._get_layer_params(layer)[1]
        if bias is not None and bias.dtype not in _DTYPES:
            bias = bias.to(torch.float32)
        out: torch.Tensor = dynamic_qlinear(x.reshape(-1, x.shape[-1]), weight, scale, bias)
        return out.reshape(*x.shape[:-1], scale.shape[0])
