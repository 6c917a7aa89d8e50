"""`Fp8BlockScaledMMLinearKernel`: FP8 with scales per block of weights and group of inputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch

from qcore.kernels.base import Answer, LinearKernel, answer, tensor_of
from qcore.kernels.composite import CompositeLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import group_fp8_quant, scaled_fp8_quant

__all__ = ["Fp8BlockScaledDynamicMMLinearKernel", "Fp8BlockScaledMMLinearKernel"]


class Fp8BlockScaledMMLinearKernel(LinearKernel[Fp8BlockScaledMMLinearLayerConfig]):
    """Base of the "fp8_block" kernels: a child implements `apply_block_scaled_mm`."""

    kernel_type: ClassVar[str] = "fp8_block"

    apply_input_quant: ClassVar[bool] = True
    """Whether the input is quantized before `apply_block_scaled_mm` (else the child does it)."""

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Refuses static activations, as few kernels take them; override to say more."""
        key = config.activation_quant_key
        return answer(key is not None and key.scale.static and "static activation scales")

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, then `apply_block_scaled_mm`, then add the bias."""
        rows = x.reshape(-1, x.shape[-1])
        scale: torch.Tensor | None = None
        key = self.config.activation_quant_key
        if key is not None and self.apply_input_quant:
            assert isinstance(key.dtype, torch.dtype)
            if key.scale.static:
                rows, scale = scaled_fp8_quant(
                    rows, getattr(layer, "input_scale", None), dtype=key.dtype
                )
            else:
                rows, scale = group_fp8_quant(rows, key.scale.group_shape.col, key.dtype)
        weight: Any = layer.weight
        out = self.apply_block_scaled_mm(rows, weight, scale, _block_scales(layer))
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.to(self.config.out_dtype).reshape(*x.shape[:-1], weight.shape[0])

    @abstractmethod
    def apply_block_scaled_mm(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        As: torch.Tensor | None,
        Bs: torch.Tensor,
    ) -> torch.Tensor:
        """The product, without bias.

        Args:
            A: FP8 [M, K], or the float input where ``As`` is None.
            B: FP8 [N, K].
            As: float32 [M, ceil(K / group)].
            Bs: float [ceil(N / bn), ceil(K / bk)].

        Returns:
            [M, N].
        """


def _block_scales(layer: torch.nn.Module) -> torch.Tensor:
    if getattr(layer, "weight_scale_inv", None) is not None:
        return tensor_of(layer, "weight_scale_inv")
    return tensor_of(layer, "weight_scale")


class Fp8BlockScaledDynamicMMLinearKernel(CompositeLinearKernel[Fp8BlockScaledMMLinearLayerConfig]):
    """Two block-scaled kernels: ``base_type`` for M up to ``base_max_m``, else ``fallback_type``.

    An instance of `CompositeLinearKernel` under the names of vLLM's class.
    """

    kernel_type: ClassVar[str] = "fp8_block"

    base_type: ClassVar[type[Fp8BlockScaledMMLinearKernel]]
    fallback_type: ClassVar[type[Fp8BlockScaledMMLinearKernel]]
    base_max_m: ClassVar[int] = 31

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Turn the two types into the parts of a composite."""
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "base_type") and hasattr(cls, "fallback_type"):
            cls.parts = ((cls.base_max_m, cls.base_type), (None, cls.fallback_type))
