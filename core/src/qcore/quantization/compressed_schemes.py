"""The formats of compressed-tensors that hold integers.

For a layer of K inputs and N outputs, with ``pack = 32 // bits`` codes in an int32, lowest first:
newer versions leave no gaps, so that codes of 3, 5, 6 and 7 bits cross the words' ends; the number
of words tells which it is (`qcore.numerics.packing`).

==================  ==========================  ================================================
pack-quantized
weight_packed       int32 [N, ceil(K / pack)]   codes, plus ``2**(bits-1)``
weight_scale        float [N, G], [1]           per group or channel; per tensor
weight_zero_point   int32 [ceil(N / pack), G]   plus ``2**(bits-1)``; if asymmetric
weight_g_idx        int32 [K]                   group of each input; if ``actorder`` is "group"
weight_shape        int64 [2]                   N, K
int-quantized
weight              int8 [N, K]                 signed codes
weight_scale        float [N, 1], [N, G], [1]   per channel; per group; per tensor
                    [2], [2, 1]                 per tensor of gate and of up, in one layer
weight_zero_point   int8 [N, G]                 if asymmetric
input_scale         float [1]                   if activations are static
input_zero_point    int8 [1]                    if they are asymmetric too
==================  ==========================  ================================================

``w = (code - zero) * scale``; an activation is ``(q - zero) * scale`` with q from -128 to 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from qcore.errors import WeightError
from qcore.kernels.fused_scales import spread_over_parts
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.numerics.packing import pack_int32, unpack_dense_int32, unpack_int32
from qcore.quantization.base import CanonicalLinear, LinearScheme
from qcore.quantization.integer import IntegerWeights

__all__ = ["Int8Scheme", "IntQuantizedScheme", "PackQuantizedScheme"]

_INT32 = (torch.int32,)
_INT8 = (torch.int8,)
_ONE = ((), (1,))
_TWO = ((2,), (2, 1))


@dataclass(frozen=True)
class _WeightOnlyScheme(LinearScheme):
    """Integer weights, activations left alone.

    Attributes:
        weights: the codes.
        one_scale: whether the whole tensor has a single scale.
    """

    weights: IntegerWeights
    one_scale: bool = False

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MPLinearLayerConfig:
        """An "mp" layer."""
        return self.weights.layer_config(K, N, act_dtype)

    def _scale_spec(self, K: int, N: int) -> ParamSpec:
        G = self.weights.num_groups(K)
        shapes: tuple[tuple[int, ...], ...] = ((N, G),) if G > 1 else ((N, 1), (N,))
        return ParamSpec(_ONE if self.one_scale else shapes, FLOAT_DTYPES, about="scales")

    def _scale(self, tensors: Mapping[str, torch.Tensor], K: int, N: int) -> torch.Tensor:
        scale = tensors["weight_scale"]
        if self.one_scale:
            return scale.reshape(1, 1).expand(N, 1)
        return scale.reshape(N, self.weights.num_groups(K))

    def _g_idx_spec(self, K: int) -> ParamSpec:
        needed = self.weights.has_g_idx and self.weights.num_groups(K) > 1
        dtypes = (torch.int32, torch.int64)
        return ParamSpec(((K,),), dtypes, optional=not needed, about="group of each input")


@dataclass(frozen=True)
class PackQuantizedScheme(_WeightOnlyScheme):
    """pack-quantized: very nearly the canonical layout."""

    def describe(self) -> str:
        """``pack-quantized 4 bit g128 symmetric``."""
        return f"pack-quantized {self.weights.describe()}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        bits, G = self.weights.bits, self.weights.num_groups(K)
        return {
            "weight_packed": ParamSpec(
                tuple((N, words) for words in _words(K, bits)), _INT32, about="codes"
            ),
            "weight_scale": self._scale_spec(K, N),
            "weight_zero_point": ParamSpec(
                tuple((words, G) for words in _words(N, bits)),
                _INT32,
                optional=not self.weights.zero_points,
                about="zero points",
            ),
            "weight_g_idx": self._g_idx_spec(K),
            "weight_shape": ParamSpec(
                ((2,),), (torch.int64, torch.int32), optional=True, about="N and K"
            ),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``weight_packed``, K up to the last word's filling; None where the file says it."""
        shape = shapes.get("weight_packed", ())
        if len(shape) != 2 or self.shape_tensor(shapes):
            return None
        dense, padded = shape[1] * 32 // self.weights.bits, shape[1] * (32 // self.weights.bits)
        stated = shapes.get("weight_scale", ())
        groups = stated[1] if len(stated) == 2 else 1
        size = self.weights.group_size
        # Words without gaps hold more; the number of groups tells which K they are of.
        return (dense if size > 0 and -(-dense // size) == groups else padded), shape[0]

    def shape_tensor(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """``weight_shape``."""
        stated = shapes.get("weight_shape") == (2,)
        return "weight_shape" if stated and len(shapes.get("weight_packed", ())) == 2 else None

    def read_shape(self, tensor: torch.Tensor) -> tuple[int, int]:
        """From ``weight_shape``."""
        N, K = (int(size) for size in tensor.tolist())
        if N < 1 or K < 1:
            raise WeightError(f"weight_shape is [{N}, {K}]")
        return K, N

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Leave out what says nothing. See `LinearScheme.canonicalize`."""
        stated = tensors.get("weight_shape")
        if stated is not None and stated.tolist() != [N, K]:
            raise WeightError(f"weight_shape says {stated.tolist()}; the layer is [{N}, {K}]")
        bits, packed = self.weights.bits, tensors["weight_packed"]
        zeros = tensors.get("weight_zero_point")
        if zeros is not None:
            zeros = _unpack(zeros, bits, N, dim=0)
        if packed.shape[1] != _words(K, bits)[0]:
            packed = pack_int32(unpack_dense_int32(packed, bits, K, dim=1), bits, dim=1)
        g_idx = tensors.get("weight_g_idx")
        if g_idx is not None and bool((g_idx == -1).all()):
            g_idx = None  # as the tool leaves it where it orders nothing
        return self.weights.canonical(
            K,
            N,
            act_dtype,
            packed=packed,
            scale=self._scale(tensors, K, N),
            zeros=zeros,
            g_idx=g_idx,
        )


@dataclass(frozen=True)
class IntQuantizedScheme(_WeightOnlyScheme):
    """int-quantized without activations: signed codes, a byte each."""

    def describe(self) -> str:
        """``int-quantized 8 bit channel symmetric``."""
        return f"int-quantized {self.weights.describe()}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        return {
            "weight": ParamSpec(((N, K),), _INT8, about="codes"),
            "weight_scale": self._scale_spec(K, N),
            "weight_zero_point": ParamSpec(
                ((N, self.weights.num_groups(K)),),
                _INT8,
                optional=not self.weights.zero_points,
                about="zero points",
            ),
            "weight_g_idx": self._g_idx_spec(K),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``weight``, where there is a scale too."""
        return _shape_of_bytes(shapes)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Shift the codes to unsigned and pack them. See `LinearScheme.canonicalize`."""
        weight, zeros = tensors["weight"], tensors.get("weight_zero_point")
        half = 1 << (self.weights.bits - 1)
        if bool((weight < -half).any()) or bool((weight > half - 1).any()):
            raise WeightError(
                f"weight goes from {int(weight.min())} to {int(weight.max())}; "
                f"codes of {self.weights.bits} bits go from {-half} to {half - 1}"
            )
        return self.weights.canonical(
            K,
            N,
            act_dtype,
            packed=pack_int32(_unsigned(weight, half), self.weights.bits, dim=1),
            scale=self._scale(tensors, K, N),
            zeros=None if zeros is None else _unsigned(zeros, half),
            g_idx=tensors.get("weight_g_idx"),
        )


@dataclass(frozen=True)
class Int8Scheme(LinearScheme):
    """int-quantized with int8 activations (W8A8).

    Attributes:
        per_channel: a scale for each output; else one for the tensor.
        static: the activations' scale is in the checkpoint.
        symmetric: activations have no zero point.
        bits: of the weights' codes, which have a byte each even if they need less.
        halves: gate and up in one layer, which may have a tensor scale each.
    """

    per_channel: bool
    static: bool
    symmetric: bool
    bits: int = 8
    halves: bool = False

    def refined(self, shapes: Mapping[str, tuple[int, ...]]) -> Int8Scheme:
        """Whether gate and up have a scale each."""
        return replace(self, halves=self.halves and shapes.get("weight_scale") in _TWO)

    def describe(self) -> str:
        """``W8A8 channel weights, dynamic symmetric activations``."""
        weights = "channel" if self.per_channel else "half" if self.halves else "tensor"
        inputs = "static" if self.static else "dynamic"
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"W{self.bits}A8 {weights} weights, {inputs} {symmetry} activations"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        scales: tuple[tuple[int, ...], ...] = ((N, 1), (N,)) if self.per_channel else _ONE
        scales = _TWO if self.halves and N % 2 == 0 else scales
        return {
            "weight": ParamSpec(((N, K),), _INT8, about="codes"),
            "weight_scale": ParamSpec(scales, FLOAT_DTYPES, about="scales"),
            "input_scale": ParamSpec(
                _ONE, FLOAT_DTYPES, optional=not self.static, about="the input's scale"
            ),
            "input_zero_point": ParamSpec(
                _ONE,
                (torch.int8, torch.int32),
                optional=not self.static or self.symmetric,
                about="the input's zero point",
            ),
            # Early versions wrote zeros for symmetric weights.
            "weight_zero_point": ParamSpec(
                (*scales, (1,)), (torch.int8, torch.int32), optional=True, about="zeros"
            ),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``weight``, where there is a scale too."""
        return _shape_of_bytes(shapes)

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> Int8ScaledMMLinearLayerConfig:
        """An "int8" layer."""
        return Int8ScaledMMLinearLayerConfig(
            is_static_input_scheme=self.static,
            is_channelwise=self.per_channel or self.halves,
            input_symmetric=self.symmetric,
            weight_shape=(N, K),
            input_dtype=act_dtype,
            out_dtype=act_dtype,
        )

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Leave out what says nothing. See `LinearScheme.canonicalize`."""
        scale = tensors["weight_scale"]
        if self.halves:
            scale = spread_over_parts(scale, (N // 2, N // 2))
        shape = (N, 1) if self.per_channel or self.halves else (1,)
        canonical = {"weight": tensors["weight"], "weight_scale": scale.reshape(shape)}
        zero = tensors.get("input_zero_point")
        if self.static:
            canonical["input_scale"] = tensors["input_scale"].to(torch.float32).reshape(1)
            if zero is not None and not self.symmetric:
                canonical["input_zero_point"] = zero.to(torch.int32).reshape(1)
        for name, symmetric in (("input_zero_point", self.symmetric), ("weight_zero_point", True)):
            if symmetric and name in tensors and bool(tensors[name].any()):
                raise WeightError(f"{name} is not zero, but the config says symmetric")
        return CanonicalLinear(self.layer_config(K, N, act_dtype), canonical)


def _words(size: int, bits: int) -> tuple[int, ...]:
    """How many words ``size`` codes may take: with gaps, and without if that is another number."""
    return tuple(dict.fromkeys((-(-size // (32 // bits)), -(-size * bits // 32))))


def _unpack(words: torch.Tensor, bits: int, size: int, dim: int) -> torch.Tensor:
    gaps = words.shape[dim] == _words(size, bits)[0]
    return (unpack_int32 if gaps else unpack_dense_int32)(words, bits, size, dim)


def _shape_of_bytes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    shape = shapes.get("weight", ())
    return (shape[1], shape[0]) if len(shape) == 2 and "weight_scale" in shapes else None


def _unsigned(codes: torch.Tensor, half: int) -> torch.Tensor:
    """int8 codes plus ``half``, as uint8."""
    return (codes.to(torch.int16) + half).to(torch.uint8)
