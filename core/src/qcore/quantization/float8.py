"""`Float8Scheme`: e4m3 weights, as compressed-tensors, vLLM's fp8, FBGEMM and ModelOpt store them.

For a layer of K inputs and N outputs; the names of the scales are the method's:

==================  ===================================  ========================================
weight              e4m3fn, e4m3fnuz [N, K]
weight_scale        float [], [1]; [N, 1], [N]           per tensor; per channel
                    [ceil(N/bn), ceil(K/bk)]             per block (DeepSeek: weight_scale_inv)
input_scale         float [], [1]                        if activations are static
input_scale_ub      float [], [1]                        FBGEMM: bounds a dynamic scale
==================  ===================================  ========================================

``w = weight * weight_scale`` whatever the name, and ``x = q * input_scale``. Scales may be stored
as e8m0, a power of two in a byte.

e4m3fnuz (AMD's gfx942) is another code, not a scale apart: code 0x80 is NaN instead of -0, and 0x7f
is 240, twice which e4m3fn does not have. Such weights stay as they are, and so do the scales; the
dtype in the file says it. Activations are then rounded to e4m3fnuz too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from qcore.errors import WeightError
from qcore.facts.quant_key import FP8_DTYPE, GroupShape, QuantKey, ScaleDesc
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig, FP8ScaledMMLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.numerics.small_floats import decode_e8m0
from qcore.quantization.base import CanonicalLinear, LinearScheme

__all__ = ["Float8Scheme", "describe_inputs"]

_SCALES = (*FLOAT_DTYPES, torch.float8_e8m0fnu)
_ONE = ((), (1,))


def describe_inputs(key: QuantKey | None) -> str:
    """``dynamic token activations``; ``weight-only`` for None."""
    return f"{key.scale} activations" if key is not None else "weight-only"


@dataclass(frozen=True)
class Float8Scheme(LinearScheme):
    """One layer's parameters.

    Attributes:
        method: what the description begins with.
        weights: which elements of the weight share a scale: all, those of a channel, or a block.
            None where only the scale's shape says whether all or a channel's.
        inputs: how activations are quantized; None for not at all.
        scale_names: what the weight's scale is called; the first that is there counts.
        input_scale_names: what the input's static scale is called.
        input_scale_ub: largest magnitude that a dynamic scale covers.
        dtype: of the weights, and of rounded activations: e4m3fn or e4m3fnuz.
    """

    method: str
    weights: GroupShape | None
    inputs: QuantKey | None
    scale_names: tuple[str, ...] = ("weight_scale",)
    input_scale_names: tuple[str, ...] = ("input_scale",)
    input_scale_ub: float | None = None
    dtype: torch.dtype = FP8_DTYPE

    @property
    def _block(self) -> bool:
        return self.weights is not None and self.weights.row >= 1 and self.weights.col >= 1

    @property
    def _static(self) -> bool:
        return self.inputs is not None and self.inputs.scale.static

    def describe(self) -> str:
        """``fp8 128x128 weights, dynamic 1x128 activations``."""
        weights = "tensor or channel" if self.weights is None else str(self.weights)
        bound = f" up to {self.input_scale_ub:g}" if self.input_scale_ub is not None else ""
        kind = " e4m3fnuz" if self.dtype == torch.float8_e4m3fnuz else ""
        return f"{self.method}{kind} {weights} weights, {describe_inputs(self.inputs)}{bound}"

    def refined(self, shapes: Mapping[str, tuple[int, ...]]) -> Float8Scheme:
        """Settle the names, and whether scales are the tensor's or a channel's."""
        scale = next((n for n in self.scale_names if n in shapes), self.scale_names[0])
        inputs = next((n for n in self.input_scale_names if n in shapes), self.input_scale_names[0])
        weights = self.weights
        if weights is None:
            # An output layer of one channel is both; one scale is one scale.
            sizes = shapes.get(scale, ())
            many = len(sizes) > 0 and sizes[0] != 1
            weights = GroupShape.PER_CHANNEL if many else GroupShape.PER_TENSOR
        return replace(self, weights=weights, scale_names=(scale,), input_scale_names=(inputs,))

    def stored_as(self, dtypes: Mapping[str, torch.dtype]) -> Float8Scheme:
        """e4m3fnuz where the weights are."""
        if dtypes.get("weight") == torch.float8_e4m3fnuz:
            return replace(self, dtype=torch.float8_e4m3fnuz)
        return self

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        tensors = {
            "weight": ParamSpec(((N, K),), (self.dtype,), about="weights"),
            self.scale_names[0]: ParamSpec(self._scale_shapes(K, N), _SCALES, about="scales"),
        }
        if self._static:
            tensors[self.input_scale_names[0]] = ParamSpec(
                _ONE, FLOAT_DTYPES, about="the input's scale"
            )
        if self.input_scale_ub is not None:
            tensors["input_scale_ub"] = ParamSpec(
                _ONE, FLOAT_DTYPES, optional=True, about="bound of the input's scale"
            )
        return tensors

    def _scale_shapes(self, K: int, N: int) -> tuple[tuple[int, ...], ...]:
        if self.weights is None:
            return (*_ONE, (1, 1), (N, 1), (N,))
        if self._block:
            rows, columns = -(-N // self.weights.row), -(-K // self.weights.col)
            return ((rows, columns), (rows, 1, columns, 1))
        return (*_ONE, (1, 1)) if self.weights.is_per_tensor() else ((N, 1), (N,))

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``weight``, where there is a scale too."""
        shape = shapes.get("weight", ())
        if len(shape) != 2 or not any(name in shapes for name in self.scale_names):
            return None
        return shape[1], shape[0]

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> FP8ScaledMMLinearLayerConfig:
        """An "fp8" or "fp8_block" layer."""
        kind = Fp8BlockScaledMMLinearLayerConfig if self._block else FP8ScaledMMLinearLayerConfig
        group = GroupShape.PER_CHANNEL if self.weights is None else self.weights
        return kind(
            weight_quant_key=QuantKey(self.dtype, ScaleDesc(torch.float32, True, group)),
            activation_quant_key=self.inputs and replace(self.inputs, dtype=self.dtype),
            weight_shape=(N, K),
            input_dtype=act_dtype,
            out_dtype=act_dtype,
        )

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Transpose the view, and give scales their canonical shape and dtype."""
        weight, scale = tensors["weight"], _float_scale(tensors[self.scale_names[0]])
        canonical = {}
        if self._block:
            assert self.weights is not None
            rows, columns = -(-N // self.weights.row), -(-K // self.weights.col)
            canonical["weight"] = weight
            canonical["weight_scale_inv"] = scale.reshape(rows, columns).contiguous()
        else:
            canonical["weight"] = weight.contiguous().t()
            per_tensor = self.weights is not None and self.weights.is_per_tensor()
            shape = (1,) if per_tensor else (N, 1)
            canonical["weight_scale"] = scale.reshape(-1, 1).expand(shape[0], 1).reshape(shape)
        if self._static:
            name = self.input_scale_names[0]
            canonical["input_scale"] = _positive(tensors[name], name)
        if self.input_scale_ub is not None:
            canonical["input_scale_ub"] = self._upper_bound(tensors, weight.device)
        return CanonicalLinear(self.layer_config(K, N, act_dtype), canonical)

    def _upper_bound(
        self, tensors: Mapping[str, torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        bound = torch.tensor([self.input_scale_ub], dtype=torch.float32, device=device)
        stored = tensors.get("input_scale_ub")
        if stored is not None and not torch.equal(stored.to(bound).reshape(1), bound):
            raise WeightError(
                f"input_scale_ub is {float(stored):g}, but the config says {self.input_scale_ub:g}"
            )
        return bound


def _float_scale(scale: torch.Tensor) -> torch.Tensor:
    if scale.dtype == torch.float8_e8m0fnu:
        return decode_e8m0(scale.view(torch.uint8))
    return scale


def _positive(scale: torch.Tensor, name: str) -> torch.Tensor:
    """One float32 scale; zero, negative and infinite ones were never calibrated."""
    scale = scale.to(torch.float32).reshape(1)
    if not (bool(torch.isfinite(scale)) and float(scale) > 0):
        raise WeightError(f"{name} is {float(scale):g}; it must be positive and finite")
    return scale
