"""`TritonFp8BlockScaledMMKernel`: e4m3 weights and activations with scales by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig
from qcore.numerics.tensor_core import FP8_SUM_UNIT
from qcore.triton import ops
from qcore.triton.packing import pad
from qcore.triton.support import TritonSupport

__all__ = ["TritonFp8BlockScaledMMKernel"]

_COLUMNS = (32, 64, 128)


class TritonFp8BlockScaledMMKernel(TritonSupport, Fp8BlockScaledMMLinearKernel):
    """Blocks of any number of outputs by 32, 64 or 128 inputs, activations in groups of as many."""

    cuda_capability = 89
    apply_input_quant = False
    accumulation = FP8_SUM_UNIT

    @classmethod
    def device_refusal(cls) -> str | None:
        """AMD's GPUs before gfx950 have no products of e4m3fn; for gfx12 Triton 3.6 gives up."""
        if not current_platform.is_rocm():
            return None
        arch = current_platform.target.arch or ""
        if arch == "gfx950":
            return None
        return f"needs products of float8_e4m3fn: gfx950; this is {arch or 'not known'}"

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Dynamic activations, in groups as wide as the weight's blocks."""
        key = config.activation_quant_key
        dtypes = {config.weight_quant_key.dtype} | ({key.dtype} if key is not None else set())
        columns = config.weight_block[1]
        dynamic = key is not None and not key.scale.static
        return answer(
            key is None and "weight-only layers (activations as they are) are not implemented",
            dtypes != {torch.float8_e4m3fn} and "only float8_e4m3fn is implemented",
            columns not in _COLUMNS
            and f"weight blocks of {columns} inputs; 32, 64 and 128 are implemented",
            key is not None and key.scale.static and "static activation scales",
            key is not None
            and dynamic
            and key.scale.group_shape.col != columns
            and f"activations in groups of {key.scale.group_shape.col} with weight blocks of "
            f"{columns} inputs; they must be as many",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Bytes [N, K] with K padded to whole blocks, and the scales in float32."""
        weight = pad(tensors["weight"].view(torch.uint8), 1, self.config.weight_block[1])
        scale = tensors["weight_scale_inv"].to(torch.float32).contiguous()
        return {"weight": weight, "weight_scale_inv": scale}

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x`` in groups, multiply, scale."""
        return self._run(x, layer.weight, layer.weight_scale_inv, bias)

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """Quantize A in groups, multiply, scale."""
        return self._run(A, pad(B, 1, self.config.weight_block[1]), Bs, None)

    def _run(self, x: torch.Tensor, weight: Any, scale: Any, bias: Any) -> torch.Tensor:
        rows, columns = self.config.weight_block
        return ops.FP8_BLOCK_LINEAR(  # type: ignore[no-any-return]
            x, weight, scale, bias, rows, columns, self.config.out_dtype
        )
