"""FP8, MXFP8, NVFP4 and MXFP4 weights by generated kernels, activations in 16 bits.

Weights become 16-bit floats in registers, exactly, and so do their scales where a group has one: no
product is rounded before it is summed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.base import Answer, LinearKernel, answer
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    _BlockFormatConfig,
)
from qcore.numerics.packing import unpack_uint4

from qcore_cuda.kernels.marlin_support import MarlinSupport

__all__ = [
    "MarlinFP8ScaledMMLinearKernel",
    "MarlinMxFp4LinearKernel",
    "MarlinMxfp8LinearKernel",
    "MarlinNvFp4LinearKernel",
]

ConfigT = TypeVar("ConfigT", bound=_BlockFormatConfig)

_NAMES = {"weight": "weight", "weight_scale": "weight_scale"}


class MarlinFP8ScaledMMLinearKernel(MarlinSupport, FP8ScaledMMLinearKernel):
    """e4m3 weights with a scale for the tensor or for each output, on processors without FP8 too.

    Activations stay as they are; where the config quantizes them, their codes are multiplied as
    16-bit floats, which hold them exactly.
    """

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """e4m3fn weights, 16-bit results; activations as they are or scaled per tensor or token."""
        key = config.activation_quant_key
        group = key.scale.group_shape if key is not None else None
        return answer(
            cls.scheme_refusal(config),
            key is None
            and config.input_dtype != config.out_dtype
            and f"inputs of {config.input_dtype} with results of {config.out_dtype}",
            key is not None
            and key.dtype != torch.float8_e4m3fn
            and f"activations of {key.dtype}; only float8_e4m3fn",
            group is not None
            and not (group.is_per_tensor() or group.is_per_token())
            and f"activation scales per {group}; per tensor and per token are implemented",
        )

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        self.b_type_id = scalar_types.float8_e4m3fn.id
        self.out_features = c.weight_shape[0]
        self.out_dtype = c.out_dtype

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Marlin's layout; a float32 scale for each output."""
        codes = tensors["weight"].t().view(torch.uint8).t()
        scale = tensors["weight_scale"].to(torch.float32).reshape(1, -1)
        packed = self.pack(codes, scale, 8, -1, grouped=False)
        self.prepare(self.config)
        return {**tensors, **packed}

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` if the config says so, multiply, scale."""
        scale: torch.Tensor | None = None
        if self.quant_fp8 is not None:
            _, _, input_scale, upper_bound = self._get_layer_params(layer)
            if x.dtype == self.fp8_dtype:
                codes, scale = x, input_scale
            else:
                rows = x.reshape(-1, x.shape[-1])
                codes, scale = self.quant_fp8(rows, input_scale, upper_bound)
                codes = codes.reshape(x.shape)
            x = codes.to(self.out_dtype)
        if scale is not None:
            scale = scale.to(torch.float32).reshape(-1)
        return self.multiply(layer, x, bias, _NAMES, scale)

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
        """Not how this kernel multiplies: a weight without its layer is in no layout of its own.

        Raises:
            TypeError: always.
        """
        raise TypeError("MarlinFP8ScaledMMLinearKernel multiplies by apply_weights alone")


class _MarlinBlockFormat(MarlinSupport, LinearKernel[ConfigT]):
    """What the block formats have in common; a child packs."""

    group: ClassVar[int]

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Activations as they are, in a type whose range holds weights times scales."""
        key = config.activation_quant_key
        return answer(
            key is not None and f"activations as {key}; only as they are (weight-only)",
            cls.scheme_refusal(config),
        )

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        small = self.bits == 4
        self.b_type_id = (scalar_types.float4_e2m1f if small else scalar_types.float8_e4m3fn).id
        assert config.out_features is not None
        self.out_features = config.out_features
        dtype = config.out_dtype or config.input_dtype
        assert dtype is not None
        self.out_dtype = dtype
        self.names = dict(_NAMES)

    bits: ClassVar[int] = 4

    def _pack(self, codes: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Codes [N, K], scales [N, G]."""
        packed = self.pack(
            codes.t().contiguous(), scale.t().contiguous(), self.bits, self.group, grouped=True
        )
        self.prepare(self.config)
        return packed

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply."""
        return self.multiply(layer, x, bias, self.names)


class MarlinNvFp4LinearKernel(_MarlinBlockFormat[NvFp4LinearLayerConfig], NvFp4LinearKernel):
    """NVFP4 weights, activations float16 or bfloat16."""

    group = 16

    def __init__(self, config: NvFp4LinearLayerConfig) -> None:
        super().__init__(config)
        self.names["global_scale"] = "weight_global_scale"

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Marlin's layout; the tensor's scale apart."""
        packed = self._pack(unpack_uint4(tensors["weight"]), tensors["weight_scale"])
        return {**packed, "weight_global_scale": tensors["weight_global_scale"].reshape(1)}


class MarlinMxFp4LinearKernel(_MarlinBlockFormat[MxFp4LinearLayerConfig], MxFp4LinearKernel):
    """MXFP4 weights, activations bfloat16. A scale of 2**-127 counts as zero."""

    group = 32

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Marlin's layout."""
        scale = tensors["weight_scale"].view(torch.float8_e8m0fnu)
        return self._pack(unpack_uint4(tensors["weight"]), scale)


class MarlinMxfp8LinearKernel(_MarlinBlockFormat[Mxfp8LinearLayerConfig], Mxfp8LinearKernel):
    """MXFP8 weights, activations bfloat16. A scale of 2**-127 counts as zero."""

    group = 32
    bits = 8

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Marlin's layout."""
        scale = tensors["weight_scale"].view(torch.float8_e8m0fnu)
        return self._pack(tensors["weight"].view(torch.uint8), scale)
