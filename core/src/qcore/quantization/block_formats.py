"""NVFP4, MXFP4 and MXFP8, as compressed-tensors and ModelOpt store them.

For a layer of K inputs and N outputs; two e2m1 codes in a byte, the even element in the low half:

===================  =======================  ==================================================
NVFP4                compressed-tensors       ModelOpt
codes                weight_packed            weight                 uint8 [N, K/2]
block scales         weight_scale             weight_scale           e4m3 [N, K/16]
tensor's scale       weight_global_scale      weight_scale_2         float32 [], [1]
input's scale        input_global_scale       input_scale            float32 [], [1]
===================  =======================  ==================================================

compressed-tensors divides by its global scales (``448 * 6 / amax``), ModelOpt multiplies by their
inverse. Both compute the scales of the input's blocks at run time.

MXFP4: codes as above (ModelOpt: weight), weight_scale uint8 [N, K/32]. MXFP8: weight e4m3 [N, K],
weight_scale uint8 [N, K/32]. These scales are e8m0, ``2**(code - 127)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcore.errors import UnsupportedQuantizationError, WeightError
from qcore.facts.quant_key import QuantKey, kMxfp8Dynamic, kNvfp4Dynamic
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.params import ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme

__all__ = [
    "COMPRESSED_NVFP4",
    "MODELOPT_NVFP4",
    "MxFp4Scheme",
    "Mxfp8Scheme",
    "NvFp4Names",
    "NvFp4Scheme",
]

_UINT8 = (torch.uint8,)
_E8M0 = (torch.uint8, torch.float8_e8m0fnu)
_ONE = ((), (1,))


def _check_blocks(name: str, block: int, K: int) -> None:
    if K % block:
        raise UnsupportedQuantizationError(
            f"{name} scales blocks of {block} inputs; K={K} is no multiple of {block}"
        )


# -- NVFP4 -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NvFp4Names:
    """What a method calls the tensors.

    Attributes:
        weight: the codes.
        global_scale: the weight's second scale.
        input_scale: the input's second scale.
        inverse: whether one divides by the second scales.
    """

    weight: str
    global_scale: str
    input_scale: str
    inverse: bool


COMPRESSED_NVFP4 = NvFp4Names("weight_packed", "weight_global_scale", "input_global_scale", True)
MODELOPT_NVFP4 = NvFp4Names("weight", "weight_scale_2", "input_scale", False)


@dataclass(frozen=True)
class NvFp4Scheme(LinearScheme):
    """One layer's parameters.

    Attributes:
        method: what the description begins with.
        names: of the tensors.
        quantized_inputs: whether activations are NVFP4 too (W4A4).
    """

    method: str
    names: NvFp4Names
    quantized_inputs: bool

    def describe(self) -> str:
        """``nvfp4-pack-quantized, weight-only``."""
        inputs = "nvfp4 activations" if self.quantized_inputs else "weight-only"
        return f"{self.method}, {inputs}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        _check_blocks("NVFP4", 16, K)
        names = self.names
        return {
            names.weight: ParamSpec(((N, K // 2),), _UINT8, about="codes"),
            "weight_scale": ParamSpec(
                ((N, K // 16),), (torch.float8_e4m3fn,), about="block scales"
            ),
            names.global_scale: ParamSpec(_ONE, (torch.float32,), about="the tensor's scale"),
            # A weight-only layer may hold one all the same; it has no use there.
            names.input_scale: ParamSpec(
                _ONE,
                (torch.float32,),
                optional=not self.quantized_inputs,
                about="the input's scale",
            ),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From the codes, where there is a global scale too."""
        shape = shapes.get(self.names.weight, ())
        if len(shape) != 2 or self.names.global_scale not in shapes:
            return None
        return shape[1] * 2, shape[0]

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> NvFp4LinearLayerConfig:
        """An "nvfp4" layer."""
        return NvFp4LinearLayerConfig(
            weight_shape=(N, K),
            activation_quant_key=kNvfp4Dynamic if self.quantized_inputs else None,
            input_dtype=act_dtype,
            out_dtype=act_dtype,
        )

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Turn the global scales into factors. See `LinearScheme.canonicalize`."""
        names = self.names
        canonical = {
            "weight": tensors[names.weight],
            "weight_scale": tensors["weight_scale"],
            "weight_global_scale": self._factor(tensors, names.global_scale),
        }
        if self.quantized_inputs:
            canonical["input_global_scale"] = self._factor(tensors, names.input_scale)
        return CanonicalLinear(self.layer_config(K, N, act_dtype), canonical)

    def _factor(self, tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        scale = tensors[name].to(torch.float32).reshape(1)
        if not (bool(torch.isfinite(scale)) and float(scale) > 0):
            raise WeightError(f"{name} is {float(scale):g}; it must be positive and finite")
        return 1.0 / scale if self.names.inverse else scale


# -- the MX formats ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _MxScheme(LinearScheme):
    """What the two have in common.

    Attributes:
        method: what the description begins with.
        inputs: how activations are quantized; None for not at all.
        weight_name: what the codes are called.
    """

    label: ClassVar[str]
    codes_in_a_byte: ClassVar[int]
    weight_dtype: ClassVar[torch.dtype]

    method: str
    inputs: QuantKey | None
    weight_name: str

    def describe(self) -> str:
        """``mxfp4-pack-quantized, mxfp4 activations``."""
        if self.inputs is None:
            return f"{self.method}, weight-only"
        return f"{self.method}, {'mxfp8' if self.inputs == kMxfp8Dynamic else 'mxfp4'} activations"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module."""
        _check_blocks(self.label, 32, K)
        columns = K // self.codes_in_a_byte
        return {
            self.weight_name: ParamSpec(((N, columns),), (self.weight_dtype,), about="weights"),
            "weight_scale": ParamSpec(((N, K // 32),), _E8M0, about="e8m0 block scales"),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From the weight, where there is a scale too."""
        shape = shapes.get(self.weight_name, ())
        if len(shape) != 2 or "weight_scale" not in shapes:
            return None
        return shape[1] * self.codes_in_a_byte, shape[0]

    def layer_config(
        self, K: int, N: int, act_dtype: torch.dtype
    ) -> MxFp4LinearLayerConfig | Mxfp8LinearLayerConfig:
        """An "mxfp4" or "mxfp8" layer."""
        kind = MxFp4LinearLayerConfig if self.codes_in_a_byte == 2 else Mxfp8LinearLayerConfig
        return kind(
            weight_shape=(N, K),
            activation_quant_key=self.inputs,
            input_dtype=act_dtype,
            out_dtype=act_dtype,
        )

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Take the tensors as they are. See `LinearScheme.canonicalize`."""
        canonical = {
            "weight": tensors[self.weight_name],
            "weight_scale": tensors["weight_scale"].view(torch.uint8),
        }
        return CanonicalLinear(self.layer_config(K, N, act_dtype), canonical)


@dataclass(frozen=True)
class MxFp4Scheme(_MxScheme):
    """e2m1 weights; activations as they are, MXFP4 or MXFP8."""

    label: ClassVar[str] = "MXFP4"
    weight_name: str = "weight_packed"
    codes_in_a_byte: ClassVar[int] = 2
    weight_dtype: ClassVar[torch.dtype] = torch.uint8


@dataclass(frozen=True)
class Mxfp8Scheme(_MxScheme):
    """e4m3 weights; activations as they are, or MXFP8."""

    label: ClassVar[str] = "MXFP8"
    weight_name: str = "weight"
    codes_in_a_byte: ClassVar[int] = 1
    weight_dtype: ClassVar[torch.dtype] = torch.float8_e4m3fn
