"""`XPUFp8BlockScaledMMKernel`: e4m3 weights with scales by blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig

from qcore_xpu.kernels.support import XpuSupport

__all__ = ["XPUFp8BlockScaledMMKernel"]


def _finer(scale: torch.Tensor, size: int, block: int, dim: int) -> torch.Tensor:
    """Scales of ``block`` elements each, as scales of equal groups, whatever ``size`` is."""
    if size % block == 0:
        return scale
    group = math.gcd(size, block)
    index = torch.arange(size // group, device=scale.device) * group // block
    return scale.index_select(dim, index)


class XPUFp8BlockScaledMMKernel(XpuSupport, Fp8BlockScaledMMLinearKernel):
    """Blocks of any size, activations in groups as wide or with one scale: ``fp8_gemm``; or as they
    are: ``fp8_gemm_w8a16``.

    oneDNN takes equal blocks only. Where the last is shorter, scales are repeated for parts that
    divide both the block and the layer.
    """

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Activations in dynamic groups, with one static scale, or as they are."""
        key = config.activation_quant_key
        dtypes = {config.weight_quant_key.dtype} | ({key.dtype} if key is not None else set())
        return answer(
            dtypes != {torch.float8_e4m3fn} and "only float8_e4m3fn is implemented",
            key is not None
            and key.scale.static
            and not key.scale.group_shape.is_per_tensor()
            and f"static activation scales by {key.scale.group_shape}; by tensor only",
        )

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight's bytes; scales float32 [blocks of N, blocks of K], a view of [K, N] ones."""
        N, K = self.config.weight_shape
        rows, columns = self.config.weight_block
        scale = tensors["weight_scale_inv"].to(torch.float32)
        scale = _finer(_finer(scale, N, rows, 0), K, columns, 1)
        packed = {
            "weight": tensors["weight"].contiguous().view(torch.uint8),
            "weight_scale_inv": scale.t().contiguous().t(),
        }
        if "input_scale" in tensors:
            packed["input_scale"] = tensors["input_scale"].to(torch.float32).reshape(1)
        return packed

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """The product, without bias, in float32: the bias is added before rounding."""
        if As is None:
            product = torch.ops.qcore_xpu.fp8_gemm_w8a16.typed
            return product(A, B.t(), Bs.t(), None, torch.float32)  # type: ignore[no-any-return]
        key = self.config.activation_quant_key
        assert key is not None
        if key.scale.static:  # by groups too, as the op wants it where weights are by blocks
            As = As.expand(A.shape[0], Bs.shape[1])
        else:
            As = _finer(As, A.shape[1], key.scale.group_shape.col, 1)
        product = torch.ops.qcore_xpu.fp8_gemm.default
        return product(A.view(torch.uint8), B.t(), torch.float32, As, Bs.t(), None)  # type: ignore[no-any-return]
