"""NVFP4 weights and activations by ``mm_fp4``: a class for each backend that lays weights out anew.

The result is ``alpha * (codes * scales) @ (codes * scales).T`` with the two scales of the scales in
``alpha``. CUTLASS, cuDNN and b12x read one layout; TensorRT-LLM's kernels want the weight's rows,
and those of its scales, in an order of their own, which FlashInfer's ``shuffle_matrix_a`` makes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.base import tensor_of
from qcore.kernels.block_formats import NvFp4LinearKernel
from qcore.layers.microscaling import NvFp4LinearLayerConfig

from qcore_flashinfer import library, ops
from qcore_flashinfer.kernels.block_format import FlashInferBlockFormat, weight_of
from qcore_flashinfer.layouts import swizzle_128x4

__all__ = [
    "FlashInferB12xNvFp4LinearKernel",
    "FlashInferCudnnNvFp4LinearKernel",
    "FlashInferCutlassNvFp4LinearKernel",
    "FlashInferTrtllmNvFp4LinearKernel",
]

_EPILOGUE_TILE = 128
"""Rows of the weight in a tile of TensorRT-LLM's epilogue, by which they are shuffled."""


class _FlashInferNvFp4(FlashInferBlockFormat[NvFp4LinearLayerConfig], NvFp4LinearKernel):
    """What the four have in common."""

    kind = "nvfp4"
    n_multiple, k_multiple = 32, 32
    function = "mm_fp4"
    parameters = (
        "alpha",
        "out_dtype",
        "block_size",
        "use_8x4_sf_layout",
        "backend",
        "use_nvfp4",
    )

    @classmethod
    def rounding_refusal(cls, config: NvFp4LinearLayerConfig) -> str | None:
        """Blocks of 16 with e4m3 scales, and one stored scale of those."""
        key = config.activation_quant_key
        if key is None:
            return "weight-only layers (activations as they are) are not implemented"
        if key.dtype != scalar_types.float4_e2m1f or key.scale2 is None:
            return f"activations as {key}; NVFP4 only"
        if key.scale.group_shape.col != 16:
            return f"activations in blocks of {key.scale.group_shape.col}; 16 is implemented"
        if not key.scale2.static or not key.scale2.group_shape.is_per_tensor():
            return "activations' scales have a scale by token; one for the tensor is implemented"
        return None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Padded rows, scales in tiles, and ``alpha``."""
        outer = tensors["input_global_scale"].to(torch.float32).reshape(1)
        alpha = tensors["weight_global_scale"].to(torch.float32).reshape(1) * outer
        return {
            "weight": self.packed_rows(tensors["weight"], 2),
            "weight_scale": self.packed_scale(tensors["weight_scale"], 16),
            "input_global_scale": outer,
            "alpha": alpha,
        }

    def multiply(
        self,
        layer: torch.nn.Module,
        codes: torch.Tensor,
        scale: torch.Tensor,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        """``mm_fp4`` by this class's backend."""
        weight, weight_scale = weight_of(layer)
        alpha = tensor_of(layer, "alpha")
        out: torch.Tensor = ops.fp4_mm(
            codes, weight, scale, weight_scale, alpha, out_dtype, 16, self.backend
        )
        return out


class FlashInferCutlassNvFp4LinearKernel(_FlashInferNvFp4):
    """By CUTLASS: SM100 and later."""

    backend = "cutlass"


class FlashInferCudnnNvFp4LinearKernel(_FlashInferNvFp4):
    """By cuDNN, with its Python frontend: SM100 and later."""

    backend = "cudnn"


class FlashInferB12xNvFp4LinearKernel(_FlashInferNvFp4):
    """By a kernel in CuTe DSL for the warp's tensor cores of SM120 and SM121."""

    backend = "b12x"
    min_capability = 120


class FlashInferTrtllmNvFp4LinearKernel(_FlashInferNvFp4):
    """By TensorRT-LLM's generated kernels: SM100 and SM103, bfloat16 results."""

    backend = "trtllm"
    out_dtypes = (torch.bfloat16,)
    n_multiple, k_multiple = _EPILOGUE_TILE, 256

    @classmethod
    def device_refusal(cls, capability: int | None) -> str | None:
        """What FlashInfer says, and whether it can shuffle."""
        shuffle = library.signature_fault("shuffle_matrix_a", ("input_tensor", "epilogue_tile_m"))
        return shuffle or super().device_refusal(capability)

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """As the others, with the rows in the order of TensorRT-LLM's tiles."""
        packed = super().pack_weights(tensors)
        return {**packed, "weight": _shuffled(packed["weight"])}

    def packed_scale(self, scale: torch.Tensor, block: int) -> torch.Tensor:
        """Rows of scales go where the weight's go, then into tiles of 128 x 4.

        FlashInfer's ``shuffle_matrix_sf_a`` does both in one, but on a GPU only.
        """
        return swizzle_128x4(_shuffled(self.padded_scale(scale, block)))


def _shuffled(rows: torch.Tensor) -> torch.Tensor:
    shuffle = library.function("shuffle_matrix_a")
    if shuffle is None:
        raise RuntimeError(library.fault() or "flashinfer-python has no shuffle_matrix_a")
    shuffled: torch.Tensor = shuffle(rows, _EPILOGUE_TILE)
    return shuffled.contiguous()
