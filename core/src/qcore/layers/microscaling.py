"""The block formats of 4 and 8 bits: NVFP4 ("nvfp4"), MXFP4 ("mxfp4"), MXFP8 ("mxfp8").

Canonical layouts, K inputs, N outputs; two e2m1 codes in a byte, the even element in the low half:

NVFP4 (``w = e2m1 * weight_scale * weight_global_scale``)

===================  =======================  ==================================================
weight               uint8 [N, K/2]
weight_scale         e4m3 [N, K/16]           plain rows, not swizzled
weight_global_scale  float32 [] or [1]        multiplies (checkpoints of llm-compressor store its
                                              inverse)
input_global_scale   float32 [] or [1]        multiplies; only if activations are quantized
===================  =======================  ==================================================

MXFP4 (``w = e2m1 * 2**(weight_scale - 127)``): weight uint8 [N, K/2], weight_scale uint8 [N, K/32].
MXFP8 (``w = e4m3 * 2**(weight_scale - 127)``): weight e4m3 [N, K], weight_scale uint8 [N, K/32].

The formats are those of NVIDIA's NVFP4 and of the OCP Microscaling (MX) specification 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import ConfigError
from qcore.facts.quant_key import QuantKey, kMxfp8Dynamic, kNvfp4Dynamic
from qcore.layers.base import MMLinearLayerConfig, check_dtype, check_shape, dtype_name
from qcore.layers.params import ParamSpec

__all__ = ["MxFp4LinearLayerConfig", "Mxfp8LinearLayerConfig", "NvFp4LinearLayerConfig"]

_ROWS = {"input_dim": 1, "output_dim": 0}


def _cut(size: int | None, by: int) -> int | None:
    return None if size is None else size // by


@dataclass(frozen=True)
class _BlockFormatConfig(MMLinearLayerConfig):
    """What the three have in common.

    Attributes:
        weight_shape: (N, K); None if not known, and then a kernel with limits on it refuses.
        activation_quant_key: how the input is quantized; None for weight-only.
        input_dtype: dtype of the input; None if not known.
        out_dtype: dtype of the output; None for that of the input.
    """

    block_size: ClassVar[int]
    weight_name: ClassVar[str]

    weight_shape: tuple[int, int] | None = None
    activation_quant_key: QuantKey | None = None
    input_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.weight_shape is not None:
            check_shape(self, "weight_shape", self.weight_shape, meaning="(N, K)")
            if self.weight_shape[1] % self.block_size:
                raise ConfigError(
                    f"{type(self).__name__}.weight_shape has K={self.weight_shape[1]}; "
                    f"it must be a multiple of the block of {self.block_size}"
                )
        key = self.activation_quant_key
        if key is not None and not isinstance(key, QuantKey):
            raise ConfigError(
                f"{type(self).__name__}.activation_quant_key is {key!r}; "
                "it must be a QuantKey or None"
            )
        check_dtype(self, "input_dtype", self.input_dtype, optional=True)
        check_dtype(self, "out_dtype", self.out_dtype, optional=True)

    @property
    def in_features(self) -> int | None:
        """K."""
        return self.weight_shape[1] if self.weight_shape else None

    @property
    def out_features(self) -> int | None:
        """N."""
        return self.weight_shape[0] if self.weight_shape else None

    @property
    def activation_dtype(self) -> torch.dtype | None:
        """``input_dtype``."""
        return self.input_dtype

    def describe(self) -> str:
        """``nvfp4 weights, bfloat16 activations``."""
        key = self.activation_quant_key
        dtype = dtype_name(self.input_dtype)
        inputs = f"{key} activations ({dtype} in)" if key else f"{dtype} activations"
        return f"{self.weight_name} weights, {inputs}"


@dataclass(frozen=True)
class NvFp4LinearLayerConfig(_BlockFormatConfig):
    """A layer with NVFP4 weights; by default the activations are NVFP4 as well (W4A4)."""

    kernel_type: ClassVar[str] = "nvfp4"
    block_size: ClassVar[int] = 16
    weight_name: ClassVar[str] = "nvfp4"

    activation_quant_key: QuantKey | None = kNvfp4Dynamic

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module."""
        N, K = self.weight_shape or (None, None)
        scalar = ((), (1,))
        needs_input = self.activation_quant_key is not None and (
            self.activation_quant_key.scale2 is not None and self.activation_quant_key.scale2.static
        )
        return {
            "weight": ParamSpec(((N, _cut(K, 2)),), (torch.uint8,), attrs=_ROWS, about="codes"),
            "weight_scale": ParamSpec(
                ((N, _cut(K, 16)),), (torch.float8_e4m3fn,), attrs=_ROWS, about="block scales"
            ),
            "weight_global_scale": ParamSpec(scalar, (torch.float32,), about="the tensor's scale"),
            "input_global_scale": ParamSpec(
                scalar, (torch.float32,), optional=not needs_input, about="the input's scale"
            ),
        }


@dataclass(frozen=True)
class MxFp4LinearLayerConfig(_BlockFormatConfig):
    """A layer with MXFP4 weights; by default weight-only."""

    kernel_type: ClassVar[str] = "mxfp4"
    block_size: ClassVar[int] = 32
    weight_name: ClassVar[str] = "mxfp4"

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module."""
        N, K = self.weight_shape or (None, None)
        return {
            "weight": ParamSpec(((N, _cut(K, 2)),), (torch.uint8,), attrs=_ROWS, about="codes"),
            "weight_scale": ParamSpec(
                ((N, _cut(K, 32)),), (torch.uint8,), attrs=_ROWS, about="e8m0 block scales"
            ),
        }


@dataclass(frozen=True)
class Mxfp8LinearLayerConfig(_BlockFormatConfig):
    """A layer with MXFP8 weights; by default the activations are MXFP8 as well."""

    kernel_type: ClassVar[str] = "mxfp8"
    block_size: ClassVar[int] = 32
    weight_name: ClassVar[str] = "mxfp8"

    activation_quant_key: QuantKey | None = kMxfp8Dynamic

    def params(self) -> Mapping[str, ParamSpec]:
        """See the module."""
        N, K = self.weight_shape or (None, None)
        return {
            "weight": ParamSpec(((N, K),), (torch.float8_e4m3fn,), attrs=_ROWS, about="weights"),
            "weight_scale": ParamSpec(
                ((N, _cut(K, 32)),), (torch.uint8,), attrs=_ROWS, about="e8m0 block scales"
            ),
        }
