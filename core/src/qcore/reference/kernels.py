"""The reference kernels: `reference_linear` behind the kernel classes, on every platform.

They hold the canonical tensors as they are and dequantize at each call: the least memory, and the
least to go wrong. They are what runs where nothing faster is installed, and it shows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from qcore.kernels.base import Answer, LinearKernel, answer, tensor_of
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.kernels.codebook import CodebookLinearKernel
from qcore.kernels.gguf import GGUFLinearKernel
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel, Int8ScaledMMLinearKernel
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig, FP8ScaledMMLinearLayerConfig
from qcore.layers.gguf import GGUFLinearLayerConfig
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.dequantize import dequantize_weight
from qcore.reference.linear import reference_linear, unknown_activation_key

__all__ = [
    "EmulationMxFp4LinearKernel",
    "EmulationMxfp8LinearKernel",
    "EmulationNvFp4LinearKernel",
    "ReferenceCodebookLinearKernel",
    "ReferenceFP8ScaledMMLinearKernel",
    "ReferenceFp8BlockScaledMMLinearKernel",
    "ReferenceGGUFLinearKernel",
    "ReferenceInt8ScaledMMLinearKernel",
    "ReferenceMPLinearKernel",
]


def _apply(
    kernel: LinearKernel[Any],
    layer: torch.nn.Module,
    x: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    tensors = {
        canonical: getattr(layer, name, None) for canonical, name in kernel.layer_names().items()
    }
    return reference_linear(kernel.config, tensors, x, bias)


class ReferenceMPLinearKernel(MPLinearKernel):
    """Packed integer weights of 2 to 8 bits, any group size, zero points, ``g_idx``."""

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """Every config."""
        return True, None

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)


class ReferenceCodebookLinearKernel(CodebookLinearKernel):
    """Codes of 1 to 8 bits, any table, any group size, with or without offsets."""

    @classmethod
    def can_implement(cls, config: CodebookLinearLayerConfig) -> Answer:
        """Every config."""
        return True, None

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)


class ReferenceInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """W8A8 with an exact integer product; static or dynamic, symmetric or not."""

    @classmethod
    def can_implement(cls, config: Int8ScaledMMLinearLayerConfig) -> Answer:
        """Every config."""
        return True, None

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)


class ReferenceFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """FP8 with scales per tensor, channel or token, static or dynamic, or weight-only."""

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """Every config."""
        return answer(unknown_activation_key(config.activation_quant_key))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)

    def apply_scaled_mm(
        self,
        *,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor | None,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
        output_shape: list[int],
    ) -> torch.Tensor:
        """``(A * As) @ (B * Bs) + bias`` in float32."""
        left = A.to(torch.float32) if As is None else A.to(torch.float32) * As.reshape(-1, 1)
        out = left @ (B.to(torch.float32) * Bs.to(torch.float32).reshape(1, -1))
        if bias is not None:
            out = out + bias.to(torch.float32)
        return out.to(out_dtype).reshape(output_shape)


class ReferenceFp8BlockScaledMMLinearKernel(Fp8BlockScaledMMLinearKernel):
    """FP8 with weight scales per block of any shape; static, grouped or no activation scales."""

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Every config."""
        return answer(unknown_activation_key(config.activation_quant_key))

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """In float32."""
        left = A.to(torch.float32)
        if As is not None:
            key = self.config.activation_quant_key
            size = key.scale.group_shape.col if key is not None else -1
            spread = As if size < 1 else As.repeat_interleave(size, dim=1)[:, : A.shape[1]]
            left = left * spread.reshape(spread.shape if spread.dim() == 2 else (1, 1))
        weight = dequantize_weight(self.config, {"weight": B, "weight_scale_inv": Bs})
        return left @ weight.t()


class EmulationNvFp4LinearKernel(NvFp4LinearKernel):
    """NVFP4 rounded and multiplied in float32: right anywhere, fast nowhere."""

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> Answer:
        """Every config."""
        return answer(unknown_activation_key(config.activation_quant_key))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)


class EmulationMxFp4LinearKernel(MxFp4LinearKernel):
    """MXFP4 rounded and multiplied in float32."""

    @classmethod
    def can_implement(cls, config: MxFp4LinearLayerConfig) -> Answer:
        """Every config."""
        return answer(unknown_activation_key(config.activation_quant_key))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)


class EmulationMxfp8LinearKernel(Mxfp8LinearKernel):
    """MXFP8 rounded and multiplied in float32."""

    @classmethod
    def can_implement(cls, config: Mxfp8LinearLayerConfig) -> Answer:
        """Every config."""
        return answer(unknown_activation_key(config.activation_quant_key))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        return _apply(self, layer, x, bias)


class ReferenceGGUFLinearKernel(GGUFLinearKernel):
    """The blocks of GGUF files, a stretch of outputs after the other.

    A vocabulary's worth of outputs is dequantized in parts, so that a call needs little memory
    beside the blocks.
    """

    part: ClassVar[int] = 1 << 23
    """Weights that are dequantized at a time."""

    @classmethod
    def can_implement(cls, config: GGUFLinearLayerConfig) -> Answer:
        """Every config."""
        return True, None

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `reference_linear`."""
        N, K = self.config.weight_shape
        step = max(1, self.part // K)
        if step >= N:
            return _apply(self, layer, x, bias)
        weight = tensor_of(layer, self.layer_names()["weight"])
        out_dtype = self.config.out_dtype or x.dtype
        outs = [
            reference_linear(
                self.config,
                {"weight": weight[at : at + step]},
                x,
                None if bias is None else bias[at : at + step],
                out_dtype=out_dtype,
            )
            for at in range(0, N, step)
        ]
        return torch.cat(outs, dim=-1)
