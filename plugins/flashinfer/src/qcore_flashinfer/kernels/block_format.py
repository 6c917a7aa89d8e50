"""What kernels of NVFP4, MXFP4 and MXFP8 have in common: limits, padding, the steps of a call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from qcore.kernels.base import Answer, LinearKernel, answer, tensor_of
from qcore.layers.base import dtype_name
from qcore.layers.microscaling import _BlockFormatConfig

from qcore_flashinfer.kernels.support import FlashInferSupport
from qcore_flashinfer.layouts import pad_to, round_up, swizzle_128x4
from qcore_flashinfer.quantize import quantize_blocks

__all__ = ["FlashInferBlockFormat", "weight_of"]

ConfigT = TypeVar("ConfigT", bound=_BlockFormatConfig)


class FlashInferBlockFormat(FlashInferSupport, LinearKernel[ConfigT]):
    """A child says how activations are rounded, packs, and multiplies."""

    kind: ClassVar[str]
    """``nvfp4``, ``mxfp4`` or ``mxfp8``, of weights and activations both."""
    n_multiple: ClassVar[int]
    """N is padded to it with zeros, which are cut off the result."""
    k_multiple: ClassVar[int]
    """K is padded to it with zeros."""
    least: ClassVar[int] = 1
    """N and K are padded to this at least."""
    out_dtypes: ClassVar[Sequence[torch.dtype]] = (torch.bfloat16, torch.float16)
    min_capability = 100

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Both sides in the format, results of 16 bits."""
        given = config.out_dtype or config.input_dtype
        allowed = " or ".join(dtype_name(dtype) for dtype in cls.out_dtypes)
        return answer(
            config.weight_shape is None and "the layer's shape is not known",
            cls.rounding_refusal(config),
            given is None and f"the dtype of results is not known; {allowed} only",
            given is not None
            and given not in cls.out_dtypes
            and f"results in {dtype_name(given)}; {allowed} only",
        )

    @classmethod
    @abstractmethod
    def rounding_refusal(cls, config: ConfigT) -> str | None:
        """Why activations cannot be rounded as ``config`` says; None where they can."""

    def packed_rows(self, weight: torch.Tensor, in_a_byte: int) -> torch.Tensor:
        """Bytes [N', K'] of codes, padded with zeros."""
        N, K = self.sizes
        return pad_to(pad_to(weight, 1, K // in_a_byte), 0, N).contiguous()

    def packed_scale(self, scale: torch.Tensor, block: int) -> torch.Tensor:
        """Bytes of scales [N, K / block], padded with zeros and in tiles of 128 x 4."""
        return swizzle_128x4(self.padded_scale(scale, block))

    def padded_scale(self, scale: torch.Tensor, block: int) -> torch.Tensor:
        """Bytes of scales [N', K' / block]."""
        N, K = self.sizes
        return pad_to(pad_to(scale.view(torch.uint8), 1, K // block), 0, N)

    @property
    def sizes(self) -> tuple[int, int]:
        """N and K as they are multiplied."""
        assert self.config.weight_shape is not None
        N, K = self.config.weight_shape
        N, K = max(N, self.least), max(K, self.least)
        return round_up(N, self.n_multiple), round_up(K, self.k_multiple)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x``, multiply, cut the padding off, add the bias."""
        assert self.config.weight_shape is not None
        rows = x.reshape(-1, x.shape[-1])
        outer = getattr(layer, "input_global_scale", None)
        outer = None if outer is None else outer.reshape(1)
        codes, scale = quantize_blocks(rows, self.kind, outer, self.sizes[1])
        out = self.multiply(layer, codes, scale, self.config.out_dtype or x.dtype)
        out = out[:, : self.config.weight_shape[0]]
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], self.config.weight_shape[0])

    @abstractmethod
    def multiply(
        self,
        layer: torch.nn.Module,
        codes: torch.Tensor,
        scale: torch.Tensor,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        """The product of activations in the format with ``layer``'s weight, [M, N']."""


def weight_of(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed weight and its scale."""
    return tensor_of(layer, "weight"), tensor_of(layer, "weight_scale")
