"""`CutlassFP8ScaledMMLinearKernel`: e4m3 weights and activations on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from qcore.kernels.base import Answer, answer, find_tensor, tensors_of
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_cuda import library, ops
from qcore_cuda.kernels.padding import pad_to

__all__ = ["CutlassFP8ScaledMMLinearKernel", "fp8_refusal"]


def fp8_refusal(config: FP8ScaledMMLinearLayerConfig) -> str | None:
    """What no kernel of this library does: other FP8 dtypes, weight-only, 32-bit outputs."""
    key = config.activation_quant_key
    dtypes = {config.weight_quant_key.dtype} | ({key.dtype} if key is not None else set())
    reasons = [
        key is None and "weight-only layers (activations as they are) are not implemented",
        dtypes != {torch.float8_e4m3fn} and "only float8_e4m3fn is implemented",
        config.out_dtype not in (torch.float16, torch.bfloat16)
        and f"the output is {str(config.out_dtype).removeprefix('torch.')}; "
        "float16 and bfloat16 are implemented",
    ]
    return "; ".join(reason for reason in reasons if reason) or None


class CutlassFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Scales per tensor, channel and token, static and dynamic.

    The weight's K is padded to 16 and its N to 8 when it is packed.
    """

    accumulation = FP8_SUM_UNIT

    @classmethod
    def get_min_capability(cls) -> int:
        """Tensor cores of 8-bit floats: SM89."""
        return 89

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the device has such tensor cores and the library code for it."""
        supported, reason = super().is_supported(compute_capability)
        return answer(reason if not supported else library.refusal(compute_capability))

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """e4m3fn on both sides, 16-bit outputs."""
        key = config.activation_quant_key
        group = key.scale.group_shape if key is not None else None
        return answer(
            fp8_refusal(config),
            group is not None
            and not (group.is_per_tensor() or group.is_per_token())
            and f"activation scales per {group}; per tensor and per token are implemented",
        )

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        library.load()
        key = c.activation_quant_key
        assert key is not None
        self.per_token = not key.scale.static and key.scale.group_shape.is_per_token()
        self.out_dtype, self.out_features = c.out_dtype, c.weight_shape[0]
        names = self.layer_names()
        self._input_scale, self._upper_bound = names["input_scale"], names["input_scale_ub"]
        static = self._input_scale if key.scale.static else None
        self._held = (names["weight"], names["weight_scale"], static)  # what every call takes

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N, K] with N padded to 8 and K to 16, and float32 scales."""
        # As bytes: torch fills, copies and compares those on every device.
        weight = tensors["weight"].t().view(torch.uint8)
        weight = pad_to(pad_to(weight, 1, 16), 0, 8).contiguous()
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1)
        if scale.numel() > 1:
            scale = pad_to(scale, 0, 8, value=1.0)
        return {**tensors, "weight": weight, "weight_scale": scale.contiguous()}

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, unless it is e4m3 already, multiply, scale."""
        weight, weight_scale, input_scale = tensors_of(layer, *self._held)
        if input_scale is None and x.dtype is torch.float8_e4m3fn:
            input_scale = find_tensor(layer, self._input_scale)
        upper_bound = find_tensor(layer, self._upper_bound) if self.per_token else None
        if bias is not None and bias.dtype != self.out_dtype:
            bias = bias.to(self.out_dtype)
        return torch.ops.qcore_cuda.fp8_linear.default(  # type: ignore[no-any-return]
            x,
            weight,
            weight_scale,
            bias,
            input_scale,
            upper_bound,
            self.per_token,
            self.out_features,
            None if x.dtype is self.out_dtype else self.out_dtype,  # a dtype takes time to pass
        )

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
        """See the base class; the columns that pad B are cut off again."""
        assert As is not None  # `can_implement` refuses weight-only layers
        if bias is not None:
            bias = pad_to(bias.to(out_dtype), 0, 8)
        if A.shape[1] != B.shape[0]:
            A = pad_to(A.view(torch.uint8), 1, 16).view(torch.float8_e4m3fn)
        out = ops.cutlass_scaled_mm(A, B, As, Bs, out_dtype, bias)
        N = output_shape[-1]
        return (out if out.shape[1] == N else out[:, :N]).reshape(output_shape)
