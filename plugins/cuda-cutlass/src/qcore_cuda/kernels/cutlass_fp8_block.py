"""`CutlassFp8BlockScaledMMKernel`: e4m3, scales for 128 x 128 weights and 1 x 128 activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer, tensors_of
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_cuda import library, ops
from qcore_cuda.kernels.cutlass_fp8 import fp8_refusal
from qcore_cuda.kernels.padding import pad_to

__all__ = ["CutlassFp8BlockScaledMMKernel"]

_EPS = 1e-30  # of a group of zeros: any scale will do that is no denormal


class CutlassFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Activations quantized here, in groups of 128."""

    apply_input_quant = False

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
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Blocks of 128 x 128, dynamic groups of 128."""
        key = config.activation_quant_key
        rows, columns = config.weight_block
        return answer(
            fp8_refusal(config),
            (rows, columns) != (128, 128)
            and f"weight blocks of {rows}x{columns}; 128x128 is implemented",
            key is not None and key.scale.static and "static activation scales",
            key is not None
            and not key.scale.static
            and key.scale.group_shape.col != 128
            and f"activations in groups of {key.scale.group_shape.col}; 128 is implemented",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N, K] with K padded to 16; scales in float32, their rows in multiples of 4."""
        library.load()
        weight = pad_to(tensors["weight"].view(torch.uint8), 1, 16)
        scale = pad_to(tensors["weight_scale_inv"].to(torch.float32), 1, 4).contiguous()
        return {"weight": weight.contiguous(), "weight_scale_inv": scale}

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` in groups, multiply, scale."""
        out_dtype = self.config.out_dtype
        if bias is not None and bias.dtype != out_dtype:
            bias = bias.to(out_dtype)
        weight, scale = tensors_of(layer, "weight", "weight_scale_inv")
        return torch.ops.qcore_cuda.fp8_block_linear.default(  # type: ignore[no-any-return]
            x,
            weight,
            scale,
            bias,
            weight.shape[0],
            None if x.dtype is out_dtype else out_dtype,  # a dtype takes time to pass
        )

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply, scale."""
        if A.shape[1] != B.shape[1]:
            A = pad_to(A, 1, 16)
        codes, scale = ops.per_token_group_fp8_quant(A, 128, _EPS, column_major_scales=True)
        b_scale = Bs[:, : scale.shape[1]].t()
        return ops.cutlass_scaled_mm(
            codes, B.view(codes.dtype).t(), scale, b_scale, self.config.out_dtype
        )
