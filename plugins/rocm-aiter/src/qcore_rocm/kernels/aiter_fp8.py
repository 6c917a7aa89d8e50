"""AITER's products of e4m3 with a scale for each token and each output.

`AiterPerTokenFp8ScaledMMLinearKernel` takes the weight as it is, the other one in the order in
which the GPU reads it. AITER multiplies the device's e4m3, so on gfx942 weights and scales of
e4m3fn are made e4m3fnuz's; see `qcore.numerics.fnuz`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from qcore.kernels.base import Answer, answer
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig

from qcore_rocm import aiter_ops, aiter_package
from qcore_rocm.kernels.aiter_fp8_base import AiterFp8ScaledMM
from qcore_rocm.kernels.aiter_limits import alignment, output_refusal
from qcore_rocm.kernels.aiter_shuffle import shuffle_weight
from qcore_rocm.kernels.fp8_kind import device_dtype, dtype_refusal, for_device

__all__ = [
    "AiterPerTokenFp8ScaledMMLinearKernel",
    "AiterPreshuffledPerTokenFp8ScaledMMLinearKernel",
]


class _AiterFp8(AiterFp8ScaledMM):
    """What the two have in common; a child names the function and calls it."""

    inputs: ClassVar[int]
    """Of which K must be a multiple."""

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """A scale for each token and output, aligned, and a shape that the package is tuned for."""
        key = config.activation_quant_key
        N, K = config.weight_shape
        by_token = key is not None and key.scale.group_shape.is_per_token() and not key.scale.static
        (function,) = cls.functions
        # The table of gemm_a8w8_CK does not say of which dtype; the other one does.
        dtype = str(device_dtype()) if function != "gemm_a8w8_CK" else None
        return answer(
            dtype_refusal(config),
            key is not None
            and not by_token
            and f"activation scales per {key.scale}; dynamic, per token, is implemented",
            config.weight_quant_key.scale.group_shape.is_per_tensor()
            and "one weight scale; a scale for each output is needed",
            alignment(config.weight_shape, cls.inputs),
            output_refusal(config.out_dtype),
            aiter_package.untuned(function, N, K, dtype),
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The device's e4m3, and float32 scales [N, 1]."""
        weight, factor = for_device(tensors["weight"].t().contiguous())
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1, 1) * factor
        kept = {"weight": self._ordered(weight).t(), "weight_scale": scale.contiguous()}
        if "input_scale_ub" in tensors:
            kept["input_scale_ub"] = tensors["input_scale_ub"]
        return kept

    def _ordered(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

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
        """See the base class; ``B`` is what `pack_weights` made."""
        assert As is not None  # `can_implement` refuses weight-only layers
        codes, weight = A.contiguous().view(torch.uint8), B.t().view(torch.uint8)
        bias = None if bias is None else bias.to(out_dtype)
        out = self._multiply(codes, weight, As.contiguous(), Bs, bias, out_dtype)
        return out.reshape(output_shape)

    def _multiply(
        self,
        a: torch.Tensor,
        weight: torch.Tensor,
        a_scale: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} has no product")


class AiterPerTokenFp8ScaledMMLinearKernel(_AiterFp8):
    """By ``gemm_a8w8_CK``."""

    functions = ("gemm_a8w8_CK",)
    inputs = 16

    def _multiply(
        self,
        a: torch.Tensor,
        weight: torch.Tensor,
        a_scale: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        out: torch.Tensor = aiter_ops.gemm_a8w8(
            a, weight, a_scale, weight_scale, bias, self.dtype, out_dtype
        )
        return out


class AiterPreshuffledPerTokenFp8ScaledMMLinearKernel(_AiterFp8):
    """By ``gemm_a8w8_bpreshuffle``, which takes no bias: it is added afterwards."""

    functions = ("gemm_a8w8_bpreshuffle",)
    inputs = 32

    def _ordered(self, weight: torch.Tensor) -> torch.Tensor:
        return shuffle_weight(weight)

    def _multiply(
        self,
        a: torch.Tensor,
        weight: torch.Tensor,
        a_scale: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        out: torch.Tensor = aiter_ops.gemm_a8w8_bpreshuffle(
            a, weight, a_scale, weight_scale, self.dtype, out_dtype
        )
        return out if bias is None else out + bias
