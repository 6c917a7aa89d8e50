"""`CPUCodebookLinearKernel`: weights that a table gives their value, on any CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.kernels.base import Answer, tensor_of
from qcore.kernels.codebook import CodebookLinearKernel
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.numerics.packing import unpack_int32

from qcore_cpu import library
from qcore_cpu.layout import by_lanes

__all__ = ["CPUCodebookLinearKernel"]


class CPUCodebookLinearKernel(CodebookLinearKernel):
    """Codes of 1 to 8 bits, any table, any group size, with or without offsets; float32 sums.

    A table that counts 0, 1, 2 ... (HQQ and other formats whose zero points are no integers) needs
    no look at it: such a layer runs as one of `CPUWNA16LinearKernel` with offsets. Others look up
    each value, of 4 bits in a register, of more in memory.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: CodebookLinearLayerConfig) -> Answer:
        """Every config."""
        return True, None

    def __init__(self, config: CodebookLinearLayerConfig) -> None:
        super().__init__(config)
        library.load()
        self.bits = 2 if config.bits <= 2 else 4 if config.bits <= 4 else 8
        """Of a stored code, if the table counts."""

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The layout of ``csrc/wna16_pack.cpp``; a table that counts is not kept."""
        config, codebook = self.config, tensors["weight_codebook"]
        K, scale = config.in_features, tensors["weight_scale"]
        codes = unpack_int32(tensors["weight_packed"], config.bits, K, dim=1)
        offset = tensors["weight_offset"] if config.has_offset else scale.new_empty(0)
        if torch.equal(codebook, torch.arange(len(codebook), dtype=codebook.dtype)):
            bits, table = self.bits, codebook.new_empty(0)
            # Codes of 8 bits are signed bytes: half of their range goes to the offset.
            below = 128 if config.bits == 8 else 0
            center = below if bits == 8 else 1 << (bits - 1)
            if below:
                offset = scale.to(torch.float32) * below + (offset if config.has_offset else 0.0)
            elif not config.has_offset:
                offset = torch.zeros_like(scale)
        else:
            bits = max(4, self.bits)
            center = 0 if bits == 8 else 8
            table = torch.nn.functional.pad(codebook, (0, (1 << bits) - len(codebook)))
        signed = (
            codes.view(torch.int8) - center if center != 128 else (codes - 128).view(torch.int8)
        )
        packed, scale, _, perm, chunks = torch.ops.qcore_cpu.wna16_pack(
            signed, scale.contiguous(), None, None, bits, 0, config.group_size, K
        )
        return {
            "weight_packed": packed,
            "weight_scale": scale,
            "weight_shift": by_lanes(offset) if offset.numel() else offset,
            "weight_codebook": table.to(torch.float32),
            "weight_perm": perm,
            "weight_chunks": chunks,
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        (N, K), out_dtype = self.config.weight_shape, self.config.out_dtype
        packed, scale = tensor_of(layer, "weight_packed"), tensor_of(layer, "weight_scale")
        offset, table = tensor_of(layer, "weight_shift"), tensor_of(layer, "weight_codebook")
        perm, chunks = tensor_of(layer, "weight_perm"), tensor_of(layer, "weight_chunks")
        if not table.numel():
            return torch.ops.qcore_cpu.wna16_linear(  # type: ignore[no-any-return]
                x, packed, scale, None, perm, chunks, bias, self.bits, K, N, out_dtype, offset
            )
        codes = "lookup4" if table.numel() == 16 else "lookup8"
        return torch.ops.qcore_cpu.wfp_linear(  # type: ignore[no-any-return]
            x, packed, scale, perm, chunks, bias, codes, K, N, out_dtype, None, offset, table
        )
