"""`ScaledMMLinearKernel` and its children for int8 and FP8: quantize the input, multiply, scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from qcore.errors import WeightError
from qcore.facts.quant_key import QuantKey
from qcore.kernels.base import PACKED_BY, LinearKernel, find_tensor
from qcore.kernels.fused_scales import merge_input_scales, spread_over_parts
from qcore.kernels.parameters import replace_parameter
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.layers.int8 import Int8ScaledMMLinearLayerConfig
from qcore.numerics.activation_quant import scaled_fp8_quant

__all__ = [
    "FP8ScaledMMLinearKernel",
    "Int8ScaledMMLinearKernel",
    "QuantFP8",
    "ScaledMMLinearKernel",
]

ScaledConfigT = TypeVar("ScaledConfigT", bound=MMLinearLayerConfig)


class ScaledMMLinearKernel(LinearKernel[ScaledConfigT]):
    """Base of the kernels that multiply quantized activations with quantized weights.

    Args:
        c: the layer.
        layer_param_names: the layer's attributes, in the order of `param_names`.

    Raises:
        KernelRefusedError: `can_implement` refuses the config.
    """

    param_names: ClassVar[tuple[str, ...]]
    """The canonical names, in the order in which the constructor takes the layer's own."""

    def __init__(self, c: ScaledConfigT, layer_param_names: Sequence[str] | None = None) -> None:
        super().__init__(c)
        self.layer_param_names = list(layer_param_names or self.param_names)

    def layer_names(self) -> Mapping[str, str]:
        """Canonical tensor name -> the layer's name for it."""
        named = dict(zip(self.param_names, self.layer_param_names, strict=False))
        return {name: named.get(name, name) for name in self.config.params()}

    def _get_layer_params(self, layer: torch.nn.Module) -> tuple[Any, ...]:
        """The layer's tensors in the order of `param_names`; None for those that it has not."""
        return tuple(find_tensor(layer, name) for name in self.layer_param_names)


class Int8ScaledMMLinearKernel(ScaledMMLinearKernel[Int8ScaledMMLinearLayerConfig]):
    """Base of the "int8" kernels.

    `_get_layer_params` gives weight, weight_scale, input_scale, input_zero_point, azp_adj.
    Of a fused layer, `pack_weights` gets a scale for each channel and one for the input.
    """

    kernel_type: ClassVar[str] = "int8"
    param_names: ClassVar[tuple[str, ...]] = (
        "weight",
        "weight_scale",
        "input_scale",
        "input_zero_point",
        "azp_adj",
    )

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Settle a fused layer's scales, then pack. See `LinearKernel`."""
        if self.config.is_fused_module and getattr(layer, PACKED_BY, None) is not self:
            self._settle_parts(layer)
        super().process_weights_after_loading(layer)

    def _settle_parts(self, layer: torch.nn.Module) -> None:
        names = self.layer_names()
        weight, scale = (getattr(layer, names[n], None) for n in ("weight", "weight_scale"))
        if weight is not None and scale is not None and not self.config.is_channelwise:
            N = weight.shape[0]
            widths = list(getattr(layer, "logical_widths", None) or [N])
            if scale.numel() == 1:
                widths = [N]
            elif sum(widths) != N:
                raise WeightError(
                    f"{getattr(layer, 'prefix', '') or 'layer'}: logical_widths are {widths}; "
                    f"the layer has {N} outputs"
                )
            replace_parameter(layer, names["weight_scale"], spread_over_parts(scale, widths))
        inputs = getattr(layer, names["input_scale"], None)
        zeros = getattr(layer, names["input_zero_point"], None)
        if inputs is not None and inputs.numel() > 1:
            merged, zero = merge_input_scales(
                inputs, None if self.config.input_symmetric else zeros
            )
            replace_parameter(layer, names["input_scale"], merged)
            if zero is not None:
                replace_parameter(layer, names["input_zero_point"], zero)


class QuantFP8:
    """Quantize activations as a `QuantKey` says.

    Args:
        key: per tensor or per token, static or dynamic.
    """

    def __init__(self, key: QuantKey) -> None:
        self.key = key
        self.static = key.scale.static
        self.group_shape = key.scale.group_shape

    def __call__(
        self,
        x: torch.Tensor,
        scale: torch.Tensor | None = None,
        scale_ub: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """FP8 [M, K] and its scale, float32 [1] or [M, 1]."""
        assert isinstance(self.key.dtype, torch.dtype)
        return scaled_fp8_quant(
            x,
            scale if self.static else None,
            per_token=self.group_shape.is_per_token(),
            upper_bound=scale_ub,
            dtype=self.key.dtype,
        )


class FP8ScaledMMLinearKernel(ScaledMMLinearKernel[FP8ScaledMMLinearLayerConfig]):
    """Base of the "fp8" kernels: a child implements `apply_scaled_mm` and `can_implement`.

    `_get_layer_params` gives weight, weight_scale, input_scale, input_scale_ub.
    """

    kernel_type: ClassVar[str] = "fp8"
    param_names: ClassVar[tuple[str, ...]] = (
        "weight",
        "weight_scale",
        "input_scale",
        "input_scale_ub",
    )

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        key = c.activation_quant_key
        self.quant_fp8 = QuantFP8(key) if key is not None else None
        self.fp8_dtype = c.weight_quant_key.dtype

    def get_output_padding(self) -> int | None:
        """The fewest rows that `apply_scaled_mm` wants to be given; None for as many as there are.

        `apply_weights` asks: it appends rows of zeros to inputs that it quantized. The child cuts
        their results off, as vLLM's kernels do: ``output_shape`` counts only the rows given.
        """
        return None

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` unless it is FP8 already, then `apply_scaled_mm`."""
        weight, weight_scale, input_scale, upper_bound = self._get_layer_params(layer)
        rows = x.reshape(-1, x.shape[-1])
        if self.quant_fp8 is None or x.dtype == self.fp8_dtype:
            codes, scale = rows, input_scale
        else:
            codes, scale = self._pad_rows(*self.quantize_input(rows, input_scale, upper_bound))
        return self.apply_scaled_mm(
            A=codes,
            B=weight,
            out_dtype=self.config.out_dtype,
            As=scale,
            Bs=weight_scale,
            bias=bias,
            output_shape=[*x.shape[:-1], self.config.weight_shape[0]],
        )

    def _pad_rows(
        self, codes: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both with as many rows as `get_output_padding` wants."""
        M, least = codes.shape[0], self.get_output_padding()
        if least is None or least <= M:
            return codes, scale
        assert self.quant_fp8 is not None
        by_row = self.quant_fp8.group_shape.is_per_token() and not self.quant_fp8.static
        missing = (0, 0, 0, least - M)
        # As bytes: torch pads those on every device. The codes of FP8 for 0.0 are zeros.
        padded = torch.nn.functional.pad(codes.view(torch.uint8), missing).view(codes.dtype)
        return padded, torch.nn.functional.pad(scale, missing, value=1.0) if by_row else scale

    def quantize_input(
        self,
        rows: torch.Tensor,
        input_scale: torch.Tensor | None,
        upper_bound: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations as the config rounds them; a kernel may have a faster way to the same.

        Args:
            rows: float [M, K].
            input_scale: the layer's, where it is static.
            upper_bound: what a dynamic scale covers at most; or None.

        Returns:
            FP8 [M, K] and its scale, float32 [1] or [M, 1].
        """
        assert self.quant_fp8 is not None
        return self.quant_fp8(rows, input_scale, upper_bound)

    @abstractmethod
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
        """``(A * As) @ (B * Bs) + bias``.

        Args:
            A: FP8 [M, K], padded as `get_output_padding` says (the float input, for weight-only
                layers).
            B: FP8 [K, N], column-major.
            out_dtype: of the result.
            As: float32 [1] or [M, 1]; None where the input is not quantized.
            Bs: float32 [1] or [N, 1].
            bias: [N].
            output_shape: of the result.
        """
