"""hipBLASLt's products of e4m3, through AITER's ``hipb_mm``.

On gfx942, whose e4m3 is e4m3fnuz, weights go in the order in which the GPU reads them: hipBLASLt's
``COL16_4R16``, tiles of 16 outputs by 64 inputs, which it has for float8_e4m3fnuz alone (its table
of orders for gfx94x). Elsewhere, and where K is no multiple of 64, the weight stays as it is.

Whether hipBLASLt has a solution for a shape is known when it is asked at the call, and AITER keeps
one handle for a process. So these stand behind the plugin's own kernels, and are taken where
``aiter`` is asked for; vLLM, too, has its counterpart behind a switch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.quant_key import QuantKey
from qcore.kernels.base import Answer, answer
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig

from qcore_rocm import aiter_ops
from qcore_rocm.kernels.aiter_fp8_base import AiterFp8ScaledMM
from qcore_rocm.kernels.aiter_limits import alignment, output_refusal
from qcore_rocm.kernels.aiter_shuffle import shuffle_weight
from qcore_rocm.kernels.fp8_kind import dtype_refusal, for_device

__all__ = [
    "AiterHipbMMPerTensorFp8ScaledMMLinearKernel",
    "AiterHipbMMPerTokenFp8ScaledMMLinearKernel",
]

_FNUZ = torch.float8_e4m3fnuz


class _HipbMM(AiterFp8ScaledMM):
    """What the two have in common; a child says which scales it takes."""

    functions = ("hipb_create_extension", "hipb_mm")

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """The device's e4m3, N and K multiples of 16, and scales and outputs that fit."""
        key = config.activation_quant_key
        return answer(
            dtype_refusal(config),
            key is not None and cls._scale_refusal(key, config.weight_quant_key),
            alignment(config.weight_shape, 16),
            cls._output_refusal(config.out_dtype),
        )

    @classmethod
    def _scale_refusal(cls, inputs: QuantKey, weights: QuantKey) -> str | None:
        raise TypeError(f"{cls.__name__} takes no scales")

    @classmethod
    def _output_refusal(cls, dtype: torch.dtype | None) -> str | None:
        return output_refusal(dtype)

    @property
    def shuffled(self) -> bool:
        """Whether the weight goes in the GPU's order."""
        return self.dtype == _FNUZ and self.config.weight_shape[1] % 64 == 0

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The device's e4m3, and float32 scales: one, or [1, N]."""
        weight, factor = for_device(tensors["weight"].t().contiguous())
        scale = tensors["weight_scale"].to(torch.float32).reshape(1, -1) * factor
        kept = {
            "weight": (shuffle_weight(weight) if self.shuffled else weight).t(),
            "weight_scale": self._weight_scale(scale, weight.shape[0]),
        }
        if "input_scale" in tensors:
            key = self.config.activation_quant_key
            assert key is not None
            doubled = 2.0 if self.dtype == _FNUZ != key.dtype else 1.0
            kept["input_scale"] = tensors["input_scale"].to(torch.float32).reshape(1) * doubled
        if "input_scale_ub" in tensors:
            kept["input_scale_ub"] = tensors["input_scale_ub"]
        return kept

    def _weight_scale(self, scale: torch.Tensor, N: int) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} has no scales")

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
        """See the base class; ``B`` and ``Bs`` are what `pack_weights` made."""
        assert As is not None  # `can_implement` refuses weight-only layers
        out: torch.Tensor = aiter_ops.hipb_mm(
            A.contiguous().view(torch.uint8),
            B.t().view(torch.uint8),
            As.contiguous(),
            Bs,
            None if bias is None else bias.to(out_dtype),
            self.dtype,
            out_dtype,
            self.shuffled,
        )
        return out.reshape(output_shape)


class AiterHipbMMPerTokenFp8ScaledMMLinearKernel(_HipbMM):
    """A scale for each token and output, bfloat16 out. One weight scale is repeated."""

    @classmethod
    def _scale_refusal(cls, inputs: QuantKey, weights: QuantKey) -> str | None:
        if inputs.scale.group_shape.is_per_token() and not inputs.scale.static:
            return None
        return f"activation scales per {inputs.scale}; dynamic, per token, is implemented"

    @classmethod
    def _output_refusal(cls, dtype: torch.dtype | None) -> str | None:
        if dtype == torch.bfloat16:
            return None
        name = str(dtype).removeprefix("torch.")
        return f"the output is {name}; hipBLASLt makes bfloat16 of scales by row"

    def _weight_scale(self, scale: torch.Tensor, N: int) -> torch.Tensor:
        return scale.expand(1, N).contiguous()


class AiterHipbMMPerTensorFp8ScaledMMLinearKernel(_HipbMM):
    """One scale for the activations, static or dynamic, and one for the weight."""

    @classmethod
    def _scale_refusal(cls, inputs: QuantKey, weights: QuantKey) -> str | None:
        if not inputs.scale.group_shape.is_per_tensor():
            return f"activation scales per {inputs.scale}; per tensor is implemented"
        if not weights.scale.group_shape.is_per_tensor():
            return "a weight scale for each output, with one for the activations"
        return None

    def _weight_scale(self, scale: torch.Tensor, N: int) -> torch.Tensor:
        return scale.reshape(1)
