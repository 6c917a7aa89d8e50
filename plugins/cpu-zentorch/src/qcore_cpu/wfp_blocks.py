"""Block formats of 4 and 8 bits on any CPU: MXFP4, NVFP4, MXFP8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from qcore.kernels.base import Answer, LinearKernel, answer, tensor_of
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel

from qcore_cpu import library
from qcore_cpu.wfp import Packed, known_rounding, pack_e2m1, pack_e4m3, rounding_of

__all__ = ["CPUMxFp4LinearKernel", "CPUMxfp8LinearKernel", "CPUNvFp4LinearKernel"]


class _CPUBlockFormat(LinearKernel[Any]):
    """What the three have in common; sums in float32.

    Weights stay codes, and their blocks' scales bytes. Where the config says so, activations are
    rounded as it says, and multiplied as floats.
    """

    codes: ClassVar[str]
    """What ``wfp_linear`` is to make of the packed codes."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: Any) -> Answer:
        """Layers whose shape is known and whose activations can be rounded."""
        rounding = rounding_of(config.activation_quant_key)
        if isinstance(rounding, str):
            return answer(rounding)
        no_scale = rounding.static and rounding.activations != "nvfp4"
        return answer(
            config.weight_shape is None and "the layer's shape is not known",
            no_scale and "static activation scales that the layer has no tensor for",
            rounding.group > 0
            and cls.codes == "e2m1"
            and f"activation scales in groups of {rounding.group} with 4-bit weights",
        )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        library.load()
        self.rounding = known_rounding(config.activation_quant_key)

    def pack_blocks(self, weight: torch.Tensor, scale: torch.Tensor) -> Packed:
        """The weight and the scales of its blocks, packed."""
        return pack_e2m1(weight, scale, self.config.block_size)

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Codes of sixteen outputs side by side, as for `CPUWNA16LinearKernel`."""
        found = self.pack_blocks(tensors["weight"], tensors["weight_scale"])
        kept = {
            "weight": found.packed,
            "weight_scale": found.scale,
            "weight_perm": found.perm,
            "weight_chunks": found.chunks,
        }
        for name in ("weight_global_scale", "input_global_scale"):
            if name in tensors and (self.rounding.static or name.startswith("weight")):
                kept[name] = tensors[name]
        return kept

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        N, K = self.config.weight_shape
        return torch.ops.qcore_cpu.wfp_linear(  # type: ignore[no-any-return]
            x,
            tensor_of(layer, "weight"),
            tensor_of(layer, "weight_scale"),
            tensor_of(layer, "weight_perm"),
            tensor_of(layer, "weight_chunks"),
            bias,
            self.codes,
            K,
            N,
            self.config.out_dtype,
            getattr(layer, "weight_global_scale", None),
            None,
            None,
            self.rounding.activations,
            self.rounding.group,
            tensor_of(layer, "input_global_scale") if self.rounding.static else None,
        )


class CPUMxFp4LinearKernel(_CPUBlockFormat, MxFp4LinearKernel):
    """MXFP4 weights: 4 bits and a power of two for 32; activations as the config says."""

    codes = "e2m1"


class CPUNvFp4LinearKernel(_CPUBlockFormat, NvFp4LinearKernel):
    """NVFP4 weights: 4 bits, an e4m3 scale for 16, one for all; activations as the config says."""

    codes = "e2m1"


class CPUMxfp8LinearKernel(_CPUBlockFormat, Mxfp8LinearKernel):
    """MXFP8 weights: e4m3 and a power of two for 32; activations as the config says."""

    codes = "e4m3"

    def pack_blocks(self, weight: torch.Tensor, scale: torch.Tensor) -> Packed:
        """The weight and the scales of its blocks, packed."""
        return pack_e4m3(weight, scale, self.config.block_size, self.rounding.group)
