"""The blocks of GGUF files on any CPU: activations as they are, or rounded to int8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, tensors_of
from qcore.kernels.gguf import GGUFLinearKernel
from qcore.layers.gguf import GGUFBlockType, GGUFLinearLayerConfig
from qcore.numerics.gguf_blocks import decode_blocks

from qcore_cpu import library
from qcore_cpu.large_pages import in_large_pages
from qcore_cpu.layout import by_lanes, stored_bits

__all__ = ["CPUGGUFInt8LinearKernel", "CPUGGUFLinearKernel"]

_BITS = {
    "Q2_K": 2,
    "Q3_K": 3,
    "Q4_0": 4,
    "Q4_1": 4,
    "Q4_K": 4,
    "Q5_0": 5,
    "Q5_1": 5,
    "Q5_K": 5,
    "Q6_K": 6,
}
"""Bits of a code; 8 where a type is not named: IQ4's values are bytes of a table."""

_HELD = (
    "weight",
    "weight_scale",
    "weight_chunks",
    "weight_offset",
    "weight_super_scale",
    "weight_super_offset",
)
"""What a call takes from the layer."""

_SINGLES = 32
"""Weights in a block that has one scale; larger blocks have integer scales too."""


class CPUGGUFLinearKernel(GGUFLinearKernel):
    """Every block type, its numbers as they are in the file; sums in float32.

    The layout is that of `CPUWNA16LinearKernel`, with an offset for each group where the type has
    one. In blocks of 256, scales and minima stay the small integers and the halves that they are,
    and are multiplied when they are used, exactly. A row's result does not depend on the other
    rows of the batch.

    Codes take the bits that they have in the file, but for those of Q3_K, which are widened to 4,
    and of IQ4, to 8.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: GGUFLinearLayerConfig) -> Answer:
        """Every config."""
        return True, None

    def __init__(self, config: GGUFLinearLayerConfig) -> None:
        super().__init__(config)
        library.load()
        self.bits = _BITS.get(config.qtype, 8)
        self.stored_bits = stored_bits(self.bits)
        self.out_type = config.out_dtype
        self.shape = (config.in_features, config.out_features)

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The layout of ``csrc/wna16_pack.cpp`` and, by ``csrc/wna16.cpp``, what GGUF adds.

        Of a layer without offsets, or without integer scales, those tensors are empty.
        """
        config = self.config
        (N, K), kind = config.weight_shape, config.block_type
        blocks = tensors["weight"].reshape(-1, kind.type_size)
        # With halves of one, scales and offsets are the integers that the block has.
        parts = decode_blocks(_with_halves_of_one(blocks, kind), config.qtype)
        center = 0 if self.bits == 8 else 1 << (self.bits - 1)
        zero = parts.zero if parts.offset is None else center
        codes = (parts.codes.to(torch.int8) - zero).reshape(N, K)
        halves = [
            blocks[:, at : at + 2].contiguous().view(torch.float16).reshape(N, -1)
            for at in kind.halves
        ]
        factors = [parts.scale] if parts.offset is None else [parts.scale, parts.offset]
        none = [torch.empty(0, dtype=torch.float16, device=blocks.device)]
        if kind.block_size == _SINGLES:
            values, supers = halves, []
        else:
            values, supers = [f.reshape(N, -1).to(torch.int8) for f in factors], halves
        packed, _, _, _, chunks = torch.ops.qcore_cpu.wna16_pack(
            codes,
            values[0].to(torch.float16),
            None,
            None,
            self.bits,
            0,
            kind.block_size // parts.codes.shape[1],
            K,
        )
        scale, offset, *_ = [by_lanes(value) for value in values] + none
        super_scale, super_offset, *_ = [by_lanes(value) for value in supers] + none + none
        made = {
            "weight": packed,
            "weight_scale": scale,
            "weight_offset": offset,
            "weight_super_scale": super_scale,
            "weight_super_offset": super_offset,
            "weight_chunks": chunks,
        }
        return in_large_pages(made, packed="weight")

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        packed, factors = self._arguments(layer, bias)
        op = torch.ops.qcore_cpu.wna16_linear.default
        return op(x, *packed, self.out_type, *factors)  # type: ignore[no-any-return]

    def _arguments(
        self, layer: torch.nn.Module, bias: torch.Tensor | None
    ) -> tuple[tuple[object, ...], list[torch.Tensor]]:
        """What both ops take before and after the arguments in which they differ."""
        weight, scale, chunks, *factors = tensors_of(layer, *_HELD)
        return (weight, scale, None, None, chunks, bias, self.stored_bits, *self.shape), factors


class CPUGGUFInt8LinearKernel(CPUGGUFLinearKernel):
    """As `CPUGGUFLinearKernel`, with activations rounded to int8 before they are multiplied.

    The inputs that share a scale of the weight, 16 or 32 of them, share one of the activations too:
    the largest magnitude by 127. For gaussian activations the result is off by about 0.5 %, no more
    than by llama.cpp, which has one for 32 or 256. Sums within a group are integers and exact.
    """

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        packed, factors = self._arguments(layer, bias)
        op = torch.ops.qcore_cpu.wna16_int8_linear.default
        return op(x, *packed, False, self.out_type, *factors)  # type: ignore[no-any-return]


def _with_halves_of_one(blocks: torch.Tensor, kind: GGUFBlockType) -> torch.Tensor:
    one = torch.ones(1, dtype=torch.float16, device=blocks.device).view(torch.uint8)
    blocks = blocks.clone()
    for at in kind.halves:
        blocks[:, at : at + 2] = one
    return blocks
