"""Codes into GPTQ's words, in the order in which the CUDA kernels want them."""

from __future__ import annotations

import torch
from qcore.numerics.packing import pack_int32

__all__ = [
    "SHUFFLED",
    "in_lanes",
    "pack_along_k",
    "pack_along_n",
    "pack_dense_int32",
    "pad_to_multiple",
]

SHUFFLED: dict[int, tuple[int, ...]] = {
    2: (0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15),
    4: (0, 2, 4, 6, 1, 3, 5, 7),
}
"""Which element of a word comes at each place after `gptq_shuffle`, from the lowest bits on."""


def pack_along_k(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack and shuffle.

    Args:
        codes: uint8 [K, N], K a multiple of 32.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 [K * bits / 32, N].
    """
    if bits == 3:
        return pack_dense_int32(codes, bits, 0)
    if bits in SHUFFLED:
        order = torch.tensor(SHUFFLED[bits], device=codes.device)
        K, N = codes.shape
        codes = codes.reshape(-1, len(order), N)[:, order].reshape(K, N)
    return pack_int32(codes, bits, 0)


def in_lanes(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes of 4 bits so that a lane of ``mma`` or ``wgmma`` has what it needs in whole words.

    Lane ``4 * g + q`` multiplies, of each 16 inputs, ``2 * q + {0, 1, 8, 9}``. Its word of 32
    inputs has at bits ``4 * i`` and ``4 * i + 16`` the inputs ``8 * i + 2 * q`` and the one after.

    Args:
        codes: uint8 [K, N], K a multiple of 64, N of 32.

    Returns:
        int32 [K / 64, N / 32, 256], for 64 inputs and 32 columns each: word
        ``128 * b + 16 * g + 4 * q + j`` is that of column ``4 * g + j``, inputs from ``32 * b`` on.
    """
    K, N = codes.shape
    # [piece, b, i, q, which of two; block, g, j]
    parts = codes.reshape(K // 64, 2, 4, 4, 2, N // 32, 8, 4).to(torch.int32)
    words = torch.zeros_like(parts[:, :, 0, :, 0])
    for i in range(4):
        for e in range(2):
            words |= parts[:, :, i, :, e] << (4 * i + 16 * e)
    return words.permute(0, 3, 1, 4, 2, 5).reshape(K // 64, N // 32, 256).contiguous()


def pack_along_n(zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack zero points: uint8 [G, N], N a multiple of 32, to int32 [G, N * bits / 32]."""
    return pack_dense_int32(zeros, bits, 1) if bits == 3 else pack_int32(zeros, bits, 1)


def pack_dense_int32(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Pack without gaps: code i of a run of 32 begins at bit ``bits * i`` of ``bits`` words.

    Args:
        codes: integers below ``2**bits``, a multiple of 32 of them in ``dim``.
        bits: of a code.
        dim: the dimension that shrinks.
    """
    moved = codes.movedim(dim, -1)
    runs = moved.reshape(*moved.shape[:-1], moved.shape[-1] // 32, 32)
    words = torch.zeros((*runs.shape[:-1], bits), dtype=torch.int32, device=codes.device)
    for i in range(32):
        word, shift = divmod(bits * i, 32)
        code = runs[..., i].to(torch.int32)
        words[..., word] |= code << shift
        if shift + bits > 32:
            words[..., word + 1] |= code >> (32 - shift)
    return words.flatten(-2).movedim(-1, dim).contiguous()


def pad_to_multiple(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Zeros below and to the right, up to multiples of ``rows`` and ``columns``; contiguous."""
    fill = (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows)
    return torch.nn.functional.pad(matrix, fill).contiguous()
