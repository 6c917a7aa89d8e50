"""FP8, NVFP4, MXFP4 and MXFP8 weights, activations in 16 bits, by the kernels of packed integers.

Weights lie as GPTQ's do. Few rows run on any processor from SM80 on, many rows on SM90 as well;
else the weight is dequantized for each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeVar

import torch
from qcore.errors import KernelRefusedError
from qcore.kernels.base import Answer, LinearKernel, answer, tensors_of
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig, FP8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    _BlockFormatConfig,
)
from qcore.numerics.packing import unpack_uint4
from qcore.numerics.small_floats import decode_e8m0

from qcore_cuda import library
from qcore_cuda.kernels.gptq_packing import pack_along_k, pad_to_multiple
from qcore_cuda.kernels.portable import PortableKernel

__all__ = [
    "HopperFP8ScaledMMLinearKernel",
    "HopperFp8BlockScaledMMKernel",
    "HopperMxFp4LinearKernel",
    "HopperMxfp8LinearKernel",
    "HopperNvFp4LinearKernel",
]

Tensor = torch.Tensor
ConfigT = TypeVar("ConfigT", bound=_BlockFormatConfig)

_ACTIVATIONS = (torch.float16, torch.bfloat16)


def _with_nan(scale: Tensor, codes: Tensor) -> Tensor:
    """Scales [G, N] that are NaN where one of the e4m3 codes [K, N] is.

    The kernels make 480 of such a code. A weight that is NaN makes its whole column of the result
    NaN, and so does its scale.
    """
    wrong = ((codes & 0x7F) == 0x7F).reshape(scale.shape[0], -1, scale.shape[1]).any(1)
    return scale.masked_fill(wrong, float("nan"))


def _weight_only_refusals(config: FP8ScaledMMLinearLayerConfig) -> tuple[str | bool, ...]:
    return (
        config.input_dtype not in _ACTIVATIONS
        and f"inputs of {config.input_dtype}; float16 and bfloat16 are implemented",
        config.weight_quant_key.dtype != torch.float8_e4m3fn
        and f"weights of {config.weight_quant_key.dtype}; only float8_e4m3fn",
        config.activation_quant_key is not None
        and "quantized activations are not implemented; they are used as they are",
    )


class _SmallFloats(PortableKernel):
    """Comes before the base of a kernel type: where it runs, and the call."""

    weight_rounding: ClassVar[torch.dtype | Literal["input"] | None] = "input"

    bits: ClassVar[int]
    group_size: int
    shape: tuple[int, int]
    """The layer's (N, K)."""
    out_type: torch.dtype

    def _multiply(
        self,
        x: Tensor,
        words: Tensor,
        scales: Tensor,
        column_scales: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """The op, with tensors as `pack_weights` made them."""
        N, K = self.shape
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(torch.float32)
        out: Tensor = torch.ops.qcore_cuda.small_float_linear.default(
            x,
            words,
            scales,
            column_scales,
            bias,
            self.bits,
            self.group_size,
            K,
            N,
            self.out_type is not x.dtype,  # float32, of which `to` makes what is wanted
        )
        return out if out.dtype is self.out_type else out.to(self.out_type)


class HopperFP8ScaledMMLinearKernel(_SmallFloats, FP8ScaledMMLinearKernel):
    """e4m3 weights with a scale for the tensor or for each output, activations as they are.

    Sums meet their scale in float32: nothing is rounded before that.
    """

    bits = 8

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """Weight-only layers of e4m3fn."""
        return answer(*_weight_only_refusals(config))

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: list[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        library.load()
        self.group_size = -(-c.in_features // 32) * 32
        self.shape, self.out_type = c.weight_shape, c.out_dtype
        names = self.layer_names()
        self._held = (names["weight"], names["weight_scale"], "weight_ones")  # what a call takes

    def pack_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """GPTQ's layout, K and N padded to 32; a float32 scale for each output.

        ``weight_ones`` are the scales in 16 bits that kernels for more than a few rows want.
        """
        codes = tensors["weight"].t().view(torch.uint8).t()
        N = codes.shape[1]
        scale = tensors["weight_scale"].to(torch.float32).reshape(1, -1).expand(1, N)
        scale = pad_to_multiple(_with_nan(scale, codes), 1, 32)
        return {
            "weight": pack_along_k(pad_to_multiple(codes, 32, 32), 8),
            "weight_scale": scale.reshape(-1),
            "weight_ones": torch.ones_like(scale, dtype=self.config.input_dtype),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Run the layer; ``x`` may be strided."""
        words, scale, ones = tensors_of(layer, *self._held)
        return self._multiply(x, words, ones, scale, bias)

    def apply_scaled_mm(
        self,
        *,
        A: Tensor,
        B: Tensor,
        out_dtype: torch.dtype,
        As: Tensor | None,
        Bs: Tensor,
        bias: Tensor | None,
        output_shape: list[int],
    ) -> Tensor:
        """Not how this kernel multiplies: a weight without its layer is in no layout of its own.

        Raises:
            TypeError: always.
        """
        raise TypeError("HopperFP8ScaledMMLinearKernel multiplies by apply_weights alone")


class HopperFp8BlockScaledMMKernel(_SmallFloats, Fp8BlockScaledMMLinearKernel):
    """e4m3 weights with a scale for each block, activations as they are.

    A scale is a power of two for its output, which sums meet in float32, times a number below 2,
    rounded to 16 bits. Where all inputs are in one block, it stays in float32 as a whole.
    """

    bits = 8

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Weight-only layers of e4m3fn, blocks of a multiple of 32 inputs or of all."""
        _, columns = config.weight_block
        return answer(
            *_weight_only_refusals(config),
            columns % 32 != 0
            and columns < config.in_features
            and f"blocks of {columns} inputs; multiples of 32 are implemented",
        )

    def __init__(self, config: Fp8BlockScaledMMLinearLayerConfig) -> None:
        super().__init__(config)
        library.load()
        self.shape, self.out_type = config.weight_shape, config.out_dtype
        K = config.in_features
        columns = config.weight_block[1]
        self.group_size = columns if columns < K else -(-K // 32) * 32

    def pack_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """GPTQ's layout, K and N padded to 32; scales in 16 bits, and a factor for each output."""
        codes = tensors["weight"].view(torch.uint8).t()
        N, rows = codes.shape[1], self.config.weight_block[0]
        scale = tensors["weight_scale_inv"].to(torch.float32).repeat_interleave(rows, 0)[:N]
        if scale.shape[1] == 1:
            factor, scale = scale[:, 0], torch.ones_like(scale)
        else:
            # The largest scale's power of two, by its bits; 0 and what is not finite have none.
            largest = scale.abs().amax(1)
            factor = (largest.view(torch.int32) & 0x7F800000).view(torch.float32)
            factor = factor.masked_fill((factor == 0) | ~factor.isfinite(), 1.0)
            scale = scale / factor[:, None]
        factor = factor.masked_fill(((codes & 0x7F) == 0x7F).any(0), float("nan"))
        return {
            "weight": pack_along_k(pad_to_multiple(codes, 32, 32), 8),
            "weight_scale_inv": pad_to_multiple(scale.t(), 1, 32).to(self.config.input_dtype),
            "weight_factor": pad_to_multiple(factor[None], 1, 32).reshape(-1),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Run the layer; ``x`` may be strided."""
        words, scale, factor = tensors_of(layer, "weight", "weight_scale_inv", "weight_factor")
        return self._multiply(x, words, scale, factor, bias)

    def apply_block_scaled_mm(self, A: Tensor, B: Tensor, As: Tensor | None, Bs: Tensor) -> Tensor:
        """Not how this kernel multiplies: a weight without its layer is in no layout of its own.

        Raises:
            TypeError: always.
        """
        raise TypeError("HopperFp8BlockScaledMMKernel multiplies by apply_weights alone")


class _BlockFormat(_SmallFloats, LinearKernel[ConfigT]):
    """What the formats with small groups have in common; a child packs, and may say more."""

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Weight-only layers of which the shape is known, activations in 16 bits."""
        key, dtype = config.activation_quant_key, config.input_dtype or config.out_dtype
        return answer(
            key is not None and f"activations as {key}; only as they are (weight-only)",
            dtype not in _ACTIVATIONS
            and f"inputs of {dtype}; float16 and bfloat16 are implemented",
            config.weight_shape is None and "the layer's shape is not known",
        )

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        library.load()
        out_type = config.out_dtype or config.input_dtype
        if config.weight_shape is None or out_type is None:  # `can_implement` said so
            raise KernelRefusedError(f"{type(self).__name__} needs the layer's shape and inputs")
        self.shape = config.weight_shape
        self.out_type = out_type


class HopperNvFp4LinearKernel(_BlockFormat[NvFp4LinearLayerConfig], NvFp4LinearKernel):
    """NVFP4 weights, activations float16 or bfloat16.

    Both hold every product of a code and its group's scale exactly; sums meet the tensor's scale
    in float32. So no weight is rounded, unless it has to be made whole.
    """

    bits = 4
    group_size = 16

    def pack_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """GPTQ's layout, shuffled, K and N padded to 32; two scales for 32 inputs in a byte each.

        Such a byte has 5 bits of exponent and 3 of mantissa, ``2**(e - 10) * (1 + m / 8)``, and so
        no subnormal numbers. It has no sign and no zero either: the codes get those.
        """
        scale = tensors["weight_scale"].to(torch.float32)
        N, G = scale.shape
        groups = unpack_uint4(tensors["weight"]).reshape(N, G, 16)
        groups = groups ^ ((scale < 0) * 8).to(torch.uint8)[..., None]
        codes = groups.masked_fill((scale == 0)[..., None], 0).reshape(N, 16 * G).t()
        # Of a float32 the upper 12 bits are sign, exponent plus 127 and these 3 bits.
        code = (scale.abs().contiguous().view(torch.int32) >> 20) - (117 << 3)
        pairs = pad_to_multiple(code.clamp(0, 255).to(torch.uint8).t(), 2, 32)
        column = tensors["weight_global_scale"].to(torch.float32).reshape(1).expand(N)
        column = column.masked_fill(scale.isnan().any(1), float("nan"))
        return {
            "weight": pack_along_k(pad_to_multiple(codes, 32, 32), 4),
            "weight_scale": pairs.reshape(-1, 2, pairs.shape[1]).transpose(1, 2).contiguous(),
            "weight_global_scale": pad_to_multiple(column[None], 1, 32).reshape(-1),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Run the layer; ``x`` may be strided."""
        words, scale, column = tensors_of(layer, "weight", "weight_scale", "weight_global_scale")
        return self._multiply(x, words, scale, column, bias)


class _Microscaling(_BlockFormat[ConfigT]):
    """What MXFP4 and MXFP8 have in common: groups of 32, scales that are powers of two.

    bfloat16 holds every such scale, and its product with any code except at the ends of its range.
    """

    group_size = 32

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Weight-only layers of which the shape is known, activations in bfloat16."""
        _, reason = super().can_implement(config)
        return answer(
            reason,
            config.input_dtype != torch.bfloat16
            and f"inputs of {config.input_dtype}; bfloat16 is implemented (float16 has no room for "
            "scales of e8m0)",
        )

    def _codes(self, weight: Tensor) -> Tensor:
        """uint8 [N, K]."""
        return unpack_uint4(weight) if self.bits == 4 else weight.view(torch.uint8)

    def pack_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """GPTQ's layout, shuffled, N padded to 32; scales in bfloat16."""
        codes = self._codes(tensors["weight"]).t()
        scale = decode_e8m0(tensors["weight_scale"].view(torch.uint8).t(), torch.bfloat16)
        if self.bits == 8:
            scale = _with_nan(scale, codes)
        return {
            "weight": pack_along_k(pad_to_multiple(codes, 32, 32), self.bits),
            "weight_scale": pad_to_multiple(scale, 1, 32),
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Run the layer; ``x`` may be strided."""
        words, scale = tensors_of(layer, "weight", "weight_scale")
        return self._multiply(x, words, scale, None, bias)


class HopperMxFp4LinearKernel(_Microscaling[MxFp4LinearLayerConfig], MxFp4LinearKernel):
    """MXFP4 weights, activations bfloat16."""

    bits = 4


class HopperMxfp8LinearKernel(_Microscaling[Mxfp8LinearLayerConfig], Mxfp8LinearKernel):
    """MXFP8 weights, activations bfloat16."""

    bits = 8
