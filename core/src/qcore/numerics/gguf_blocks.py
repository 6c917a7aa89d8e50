"""The value of every weight in the block types of GGUF files.

A block of each type, by byte. ``d`` and ``m`` are halves, little-endian; of a byte, ``low`` and
``high`` are its four lower and upper bits. Weight i of the block is what stands at the right.

======  ============================================================  =============================
Q4_0    d, 16 nibble bytes                                            d * (q - 8)
Q4_1    d, m, 16 nibble bytes                                         d * q + m
Q5_0    d, 4 bytes of fifth bits, 16 nibble bytes                     d * (q - 16)
Q5_1    d, m, 4 bytes of fifth bits, 16 nibble bytes                  d * q + m
Q8_0    d, 32 int8                                                    d * q
IQ4_NL  d, 16 nibble bytes                                            d * table[q]
Q2_K    16 scale bytes, 64 bytes of 2 bits, d, m                      d * low * q - m * high
Q3_K    32 bytes of third bits, 64 of 2 bits, 12 scale bytes, d       d * (s - 32) * (q - 4)
Q4_K    d, m, 12 scale bytes, 128 nibble bytes                        d * s * q - m * t
Q5_K    d, m, 12 scale bytes, 32 of fifth bits, 128 nibble bytes      d * s * q - m * t
Q6_K    128 nibble bytes, 64 of 2 upper bits, 16 int8 scales s, d     d * s * (q - 32)
IQ4_XS  d, 2 bytes of upper scale bits, 4 of lower, 128 nibble bytes  d * (s - 32) * table[q]
======  ============================================================  =============================

In blocks of 32, the low nibbles are the weights 0 to 15 and the high ones 16 to 31; bit i of the
fifth bits, taken as one integer, belongs to weight i. In blocks of 256, fields of fewer than 8 bits
are *planes*: a run of bytes gives one stretch of weights from its lowest bits, the next stretch
from the bits above, and so on; runs are 32 bytes long (64 in Q6_K's nibbles, 16 in IQ4_XS). Scales
are shared by 16 weights (Q2_K, Q3_K, Q6_K) or 32. Six-bit scales lie in their 12 bytes as
`_scales_and_mins` and `_q3_scales` say, those of IQ4_XS in order, low bits first.

Source: ggml's definitions of the blocks (ggml-common.h, ggml-quants.c). The products below are
exact in float32 and a minimum is subtracted last, so each value is the real one, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qcore.layers.gguf import GGUF_BLOCK_TYPES

__all__ = ["BlockParts", "decode_blocks", "dequantize_blocks"]

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen values of IQ4_NL and IQ4_XS."""


@dataclass(frozen=True)
class BlockParts:
    """Weights as ``scale * (codes - zero) + offset``; the shapes broadcast to [blocks, G, size].

    Attributes:
        codes: integers, [blocks, G, size] with G groups in a block.
        scale: [blocks, G, 1].
        zero: what is taken off each code.
        offset: [blocks, G, 1], or None for 0.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: int = 0
    offset: torch.Tensor | None = None

    def values(self) -> torch.Tensor:
        """The weights, [blocks, G * size]."""
        codes = self.codes.to(self.scale.dtype)
        if self.zero:
            codes -= self.zero
        codes *= self.scale
        if self.offset is not None:
            codes += self.offset
        return codes.flatten(1)

    def magnitudes(self) -> torch.Tensor:
        """``|scale| * (|codes| + zero) + |offset|``: the sizes of the terms, summed separately."""
        terms = self.scale.abs() * (self.codes.to(self.scale.dtype).abs() + self.zero)
        if self.offset is not None:
            terms = terms + self.offset.abs()
        return terms.flatten(1)


def dequantize_blocks(
    rows: torch.Tensor, qtype: str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The weights of rows of blocks.

    Args:
        rows: uint8 [..., row bytes].
        qtype: a key of `qcore.layers.gguf.GGUF_BLOCK_TYPES`.
        dtype: to compute in and return: float32 or float64.

    Returns:
        [..., K].
    """
    values = decode_blocks(rows, qtype, dtype).values()
    kind = GGUF_BLOCK_TYPES[qtype]
    return values.reshape(*rows.shape[:-1], rows.shape[-1] // kind.type_size * kind.block_size)


def decode_blocks(rows: torch.Tensor, qtype: str, dtype: torch.dtype = torch.float32) -> BlockParts:
    """The codes and scales of rows of blocks, all blocks in a line; see `dequantize_blocks`."""
    size = GGUF_BLOCK_TYPES[qtype].type_size
    return _DECODERS[qtype](rows.reshape(rows.numel() // size, size), dtype)


# -- fields ------------------------------------------------------------------------------------


def _half(blocks: torch.Tensor, at: int, dtype: torch.dtype) -> torch.Tensor:
    """The half at byte ``at`` of each block, [blocks, 1, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(dtype).unsqueeze(-1)


def _planes(data: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """Fields of ``bits`` bits: uint8 [blocks, bytes] to [blocks, bytes * 8 / bits] in their order.

    Args:
        data: the bytes.
        bits: 1, 2 or 4.
        run: so many bytes give their lowest fields first, then the ones above.
    """
    runs = data.reshape(len(data), data.shape[1] // run, run)
    mask = (1 << bits) - 1
    # One plane at a time: shifts by a number are several times as fast as shifts by a tensor.
    return torch.stack([(runs >> shift) & mask for shift in range(0, 8, bits)], dim=2).flatten(1)


def _bits_in_order(data: torch.Tensor) -> torch.Tensor:
    """Bits, the lowest of each byte first: uint8 [blocks, bytes] to [blocks, bytes * 8]."""
    return _planes(data, 1, 1)


def _table(codes: torch.Tensor) -> torch.Tensor:
    values = torch.tensor(_IQ4, dtype=torch.int8, device=codes.device)
    return values.index_select(0, codes.flatten().int()).reshape(codes.shape)


def _groups(codes: torch.Tensor, size: int) -> torch.Tensor:
    return codes.reshape(len(codes), codes.shape[1] // size, size)


# -- blocks of 32 ------------------------------------------------------------------------------


def _q4_0(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _planes(blocks[:, 2:], 4, 16)
    return BlockParts(_groups(codes, 32), _half(blocks, 0, dtype), zero=8)


def _q4_1(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _groups(_planes(blocks[:, 4:], 4, 16), 32)
    return BlockParts(codes, _half(blocks, 0, dtype), offset=_half(blocks, 2, dtype))


def _q5_0(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _planes(blocks[:, 6:], 4, 16) | (_bits_in_order(blocks[:, 2:6]) << 4)
    return BlockParts(_groups(codes, 32), _half(blocks, 0, dtype), zero=16)


def _q5_1(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _planes(blocks[:, 8:], 4, 16) | (_bits_in_order(blocks[:, 4:8]) << 4)
    offset = _half(blocks, 2, dtype)
    return BlockParts(_groups(codes, 32), _half(blocks, 0, dtype), offset=offset)


def _q8_0(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    return BlockParts(_groups(blocks[:, 2:].view(torch.int8), 32), _half(blocks, 0, dtype))


def _iq4_nl(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _table(_planes(blocks[:, 2:], 4, 16))
    return BlockParts(_groups(codes, 32), _half(blocks, 0, dtype))


# -- blocks of 256 -----------------------------------------------------------------------------


def _q2_k(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    scales = blocks[:, :16].unsqueeze(-1)
    codes = _planes(blocks[:, 16:80], 2, 32)
    scale = _half(blocks, 80, dtype) * (scales & 15)
    return BlockParts(_groups(codes, 16), scale, offset=-_half(blocks, 82, dtype) * (scales >> 4))


def _q3_scales(packed: torch.Tensor) -> torch.Tensor:
    """Sixteen six-bit scales: four bits each in bytes 0 to 7, two bits each in bytes 8 to 11."""
    return _planes(packed[:, :8], 4, 8) | (_planes(packed[:, 8:], 2, 4) << 4)


def _q3_k(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _planes(blocks[:, 32:96], 2, 32) | (_planes(blocks[:, :32], 1, 32) << 2)
    scales = _q3_scales(blocks[:, 96:108]).to(dtype).unsqueeze(-1) - 32
    return BlockParts(_groups(codes, 16), _half(blocks, 108, dtype) * scales, zero=4)


def _scales_and_mins(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight six-bit scales and eight six-bit minima, uint8 [blocks, 8, 1] each.

    Bytes 0 to 3 hold scales 0 to 3, bytes 4 to 7 minima 0 to 3. Bytes 8 to 11 hold the four lower
    bits of the other scales (low) and minima (high); their two upper bits are those left in bytes
    0 to 3 and 4 to 7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    mins = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return scales.unsqueeze(-1), mins.unsqueeze(-1)


def _q4_k(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = _planes(blocks[:, 16:], 4, 32)
    scale = _half(blocks, 0, dtype) * scales
    return BlockParts(_groups(codes, 32), scale, offset=-_half(blocks, 2, dtype) * mins)


def _q5_k(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = _planes(blocks[:, 48:], 4, 32) | (_planes(blocks[:, 16:48], 1, 32) << 4)
    scale = _half(blocks, 0, dtype) * scales
    return BlockParts(_groups(codes, 32), scale, offset=-_half(blocks, 2, dtype) * mins)


def _q6_k(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    codes = _planes(blocks[:, :128], 4, 64) | (_planes(blocks[:, 128:192], 2, 32) << 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).unsqueeze(-1)
    return BlockParts(_groups(codes, 16), _half(blocks, 208, dtype) * scales, zero=32)


def _iq4_xs(blocks: torch.Tensor, dtype: torch.dtype) -> BlockParts:
    upper, lower = blocks[:, 2:4], blocks[:, 4:8]
    scales = _planes(lower, 4, 1) | (_planes(upper, 2, 1) << 4)
    scale = _half(blocks, 0, dtype) * (scales.to(dtype).unsqueeze(-1) - 32)
    return BlockParts(_groups(_table(_planes(blocks[:, 8:], 4, 16)), 32), scale)


_DECODERS: dict[str, Callable[[torch.Tensor, torch.dtype], BlockParts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
