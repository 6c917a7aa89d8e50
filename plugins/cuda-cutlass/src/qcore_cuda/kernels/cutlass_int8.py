"""`CutlassInt8ScaledMMLinearKernel`: int8 weights and activations on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from qcore.kernels.base import Answer, answer, tensors_of
from qcore.kernels.scaled_mm import Int8ScaledMMLinearKernel
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig

from qcore_cuda import library
from qcore_cuda.kernels.padding import MAX_INT32_K, pad_to
from qcore_cuda.kernels.portable import PortableKernel

__all__ = ["CutlassInt8ScaledMMLinearKernel"]


class CutlassInt8ScaledMMLinearKernel(PortableKernel, Int8ScaledMMLinearKernel):
    """Static or dynamic, symmetric or not; integer products are exact for all codes."""

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """16-bit outputs; no fused layer with one scale for each part."""
        out_dtype = config.out_dtype or config.input_dtype
        K = config.in_features
        return answer(
            out_dtype not in (torch.float16, torch.bfloat16)
            and f"the output is {_name(out_dtype)}; float16 and bfloat16 are implemented",
            config.is_fused_module
            and not config.is_channelwise
            and "a fused layer's tensor scales need the parts' widths; give channel scales",
            K is None and "the layer's shape is not known",
            K is not None
            and K > MAX_INT32_K
            and f"K={K}; beyond {MAX_INT32_K} a 32-bit sum of products may overflow",
        )

    def __init__(
        self,
        c: Int8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        given = list(layer_param_names or ())
        super().__init__(c, [*given, *self.param_names[len(given) :]])
        library.load()
        out_dtype = c.out_dtype or c.input_dtype
        assert out_dtype is not None
        self.out_dtype = out_dtype
        weight, weight_scale, input_scale, azp, azp_adj = self.layer_param_names
        static, symmetric = c.is_static_input_scheme, c.input_symmetric
        self._held = (  # what a call takes from the layer
            weight,
            weight_scale,
            input_scale if static else None,
            azp if static and not symmetric else None,
            None if symmetric else azp_adj,
        )
        assert c.weight_shape is not None
        self.out_features = c.weight_shape[0]

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """[N, K] with K padded to 16 and N to 8, and for zero points the sum of each row."""
        weight = pad_to(pad_to(tensors["weight"], 1, 16), 0, 8)
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1)
        if scale.numel() > 1:
            scale = pad_to(scale, 0, 8, value=1.0)
        kept = {"weight": weight.contiguous(), "weight_scale": scale.contiguous()}
        config = self.config
        if config.is_static_input_scheme:
            kept["input_scale"] = tensors["input_scale"]
        if not config.input_symmetric:
            kept[self.layer_param_names[4]] = weight.sum(1, dtype=torch.int32)
            if config.is_static_input_scheme:
                kept["input_zero_point"] = tensors["input_zero_point"]
        return kept

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, multiply, scale; ``x`` may be strided."""
        weight, weight_scale, input_scale, azp, azp_adj = tensors_of(layer, *self._held)
        if bias is not None and bias.dtype != self.out_dtype:
            bias = bias.to(self.out_dtype)
        return torch.ops.qcore_cuda.int8_linear.default(  # type: ignore[no-any-return]
            x,
            weight,
            weight_scale,
            bias,
            input_scale,
            azp,
            azp_adj,
            self.out_features,
            None if x.dtype is self.out_dtype else self.out_dtype,  # a dtype takes time to pass
        )


def _name(dtype: torch.dtype | None) -> str:
    return "not known" if dtype is None else str(dtype).removeprefix("torch.")
