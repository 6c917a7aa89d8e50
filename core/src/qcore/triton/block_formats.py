"""NVFP4, MXFP4 and MXFP8 on GPUs whose tensor cores do not know them.

Weights stay packed and are made 16-bit floats in registers; activations are rounded as the config
says, to bfloat16, which holds a rounded value exactly. Products of the two are exact, and sums are
in float32.

With activations as they are, weights take the activations' dtype. NVFP4's fit in both (six bits, a
small range; the tensor's scale is applied to sums). The MX formats' powers of two do not fit in
float16: each output's largest scale is taken out and applied to its sums, so that what remains is
at most 448 and loses bits only below 2**-24.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch

from qcore.facts.quant_key import QuantKey
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.base import Answer, LinearKernel, answer, tensor_of
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    _BlockFormatConfig,
)
from qcore.numerics.packing import unpack_uint4
from qcore.numerics.small_floats import decode_e8m0
from qcore.triton import ops
from qcore.triton.packing import pack_codes, pack_rows
from qcore.triton.support import TritonSupport

__all__ = ["TritonMxFp4LinearKernel", "TritonMxfp8LinearKernel", "TritonNvFp4LinearKernel"]

ConfigT = TypeVar("ConfigT", bound=_BlockFormatConfig)


def _rounding(key: QuantKey | None) -> str | None:
    """How activations are rounded: a format's name, "" for not at all, None if it is not known."""
    if key is None:
        return ""
    if key.dtype == scalar_types.float4_e2m1f:
        if key.scale2 is not None:
            return "nvfp4" if key.scale.group_shape.col == 16 else None
        return "mxfp4" if key.scale.dtype == torch.uint8 else None
    if key.dtype == torch.float8_e4m3fn and key.scale.dtype == torch.uint8:
        return "mxfp8"
    return None


class _TritonBlockFormat(TritonSupport, LinearKernel[ConfigT]):
    """What the three have in common; a child packs."""

    kind: ClassVar[str]
    group: ClassVar[int]

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Activations as they are in 16 bits, or rounded to one of the three formats."""
        rounding = _rounding(config.activation_quant_key)
        dtype = config.input_dtype
        K = config.in_features
        return answer(
            K is None and "the layer's shape is not known",
            rounding is None and f"activations as {config.activation_quant_key}",
            rounding == ""
            and dtype not in (torch.float16, torch.bfloat16)
            and ("the input's dtype is not known" if dtype is None else f"inputs of {dtype}")
            + "; activations that are not rounded must be float16 or bfloat16",
            rounding in ("mxfp4", "mxfp8")
            and K is not None
            and K % 32 != 0
            and f"K={K}; activations in blocks of 32 need a multiple",
        )

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        self.rounding = _rounding(config.activation_quant_key) or ""
        assert config.out_features is not None
        self.out_features = config.out_features

    def _row_factor(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        """What NVFP4 activations are multiplied by: the layer's, or made of ``x``."""
        key = self.config.activation_quant_key
        if self.rounding != "nvfp4" or key is None or key.scale2 is None:
            return None
        if key.scale2.static:
            return tensor_of(layer, "input_global_scale").reshape(1)
        size = x.reshape(-1, x.shape[-1]).abs()
        if size.shape[0] == 0:
            return None
        per_token = key.scale2.group_shape.is_per_token()
        amax = size.amax(-1) if per_token else size.amax().reshape(1)
        outer = amax.to(torch.float32) / (448.0 * 6.0)
        return torch.where(outer == 0, torch.ones_like(outer), outer)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Round ``x`` as the config says, multiply, scale."""
        return ops.PACKED_LINEAR(  # type: ignore[no-any-return]
            x,
            tensor_of(layer, "weight"),
            tensor_of(layer, "weight_scale"),
            None,
            tensor_of(layer, "weight_factor"),
            self._row_factor(layer, x),
            bias,
            self.kind,
            0,
            self.group,
            self.rounding,
            self.out_features,
            self.config.out_dtype or x.dtype,
        )


def _by_output(factor: torch.Tensor, N: int) -> torch.Tensor:
    """float32 [N'], of one element or of N."""
    wide = factor.new_ones(-(-N // 16) * 16, dtype=torch.float32)
    wide[:N] = factor.reshape(-1)
    return wide


class TritonNvFp4LinearKernel(_TritonBlockFormat[NvFp4LinearLayerConfig], NvFp4LinearKernel):
    """NVFP4 weights; activations NVFP4, MX or as they are."""

    kind = "e2m1"
    group = 16

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Codes by inputs, scales as bytes, and the tensor's scale for each output."""
        codes = unpack_uint4(tensors["weight"])
        packed = {
            "weight": pack_codes(codes, 4),
            "weight_scale": pack_rows(tensors["weight_scale"].view(torch.uint8)),
            "weight_factor": _by_output(tensors["weight_global_scale"], codes.shape[0]),
        }
        if "input_global_scale" in tensors:
            packed["input_global_scale"] = tensors["input_global_scale"]
        return packed


def _pack_mx(codes: torch.Tensor, scale: torch.Tensor, bits: int) -> Mapping[str, torch.Tensor]:
    """Codes [N, K] and e8m0 scales [N, G], each output's largest scale apart."""
    exponents = scale.to(torch.int32)
    none = scale == 255  # NaN stays what it is
    largest = exponents.masked_fill(none, 0).amax(1, keepdim=True)
    rest = (exponents - largest + 127).clamp(min=0).masked_fill(none, 255)
    factor = decode_e8m0(largest.to(torch.uint8))
    return {
        "weight": pack_codes(codes, bits),
        "weight_scale": pack_rows(rest.to(torch.uint8)),
        "weight_factor": _by_output(factor, codes.shape[0]),
    }


class TritonMxFp4LinearKernel(_TritonBlockFormat[MxFp4LinearLayerConfig], MxFp4LinearKernel):
    """MXFP4 weights; activations MXFP4, MXFP8 or as they are."""

    kind = "e2m1"
    group = 32
    weight_rounding = "input"

    @classmethod
    def _supports_quant_scheme(cls, weight_key: Any, activation_key: QuantKey | None) -> bool:
        """Whether the kernel multiplies these two."""
        return _rounding(activation_key) is not None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Codes by inputs, scales as bytes, each output's largest scale apart."""
        return _pack_mx(unpack_uint4(tensors["weight"]), tensors["weight_scale"], 4)


class TritonMxfp8LinearKernel(_TritonBlockFormat[Mxfp8LinearLayerConfig], Mxfp8LinearKernel):
    """MXFP8 weights; activations MXFP8, MXFP4 or as they are."""

    kind = "e4m3"
    group = 32
    weight_rounding = "input"

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes by inputs, scales as bytes, each output's largest scale apart."""
        return _pack_mx(tensors["weight"].view(torch.uint8), tensors["weight_scale"], 8)
