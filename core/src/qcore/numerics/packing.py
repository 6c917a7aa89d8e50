"""Integer codes in int32 words, lowest bits first, along one dimension.

`pack_int32` puts ``32 // bits`` codes in a word and leaves the rest of it zero: the canonical
packing. `unpack_dense_int32` reads the other one in use, without gaps, where 3, 5, 6 and 7 bits
cross the words' ends: GPTQ's 3 bits, and compressed-tensors' newer pack-quantized. With 2, 4 and 8
bits the two are the same.
"""

from __future__ import annotations

import torch

from qcore.errors import WeightError

__all__ = ["pack_int32", "pack_uint4", "unpack_dense_int32", "unpack_int32", "unpack_uint4"]


def pack_int32(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Pack codes into int32 words.

    Args:
        codes: integers in ``0 .. 2**bits - 1``, any integer dtype. Higher bits are cut off.
        bits: 1 to 8.
        dim: the dimension that shrinks by ``32 // bits``; the last word is filled up with zeros.

    Returns:
        int32, with ``ceil(size / (32 // bits))`` in ``dim``.

    Raises:
        WeightError: ``codes`` are no integers, or ``bits`` is something else.
    """
    _check(codes, bits)
    factor = 32 // bits
    moved = codes.movedim(dim, -1)
    fill = -moved.shape[-1] % factor
    if fill:
        moved = torch.nn.functional.pad(moved, (0, fill))
    words = torch.zeros(
        (*moved.shape[:-1], moved.shape[-1] // factor), dtype=torch.int32, device=codes.device
    )
    # One slice at a time: the transient stays at one word's worth of codes, whatever the size.
    for i in range(factor):
        # A left shift into the sign bit wraps, which is what the top code needs.
        words |= (moved[..., i::factor].to(torch.int32) & (2**bits - 1)) << (bits * i)
    return words.movedim(-1, dim).contiguous()


def unpack_int32(words: torch.Tensor, bits: int, size: int, dim: int) -> torch.Tensor:
    """Take codes out of int32 words; the inverse of `pack_int32`.

    Args:
        words: int32.
        bits: 1 to 8.
        size: the length of ``dim`` before packing.
        dim: the packed dimension.

    Returns:
        uint8 codes.

    Raises:
        WeightError: ``words`` has too few or too many words for ``size``, or is no int32, or
            ``bits`` is something else.
    """
    _check(words, bits, torch.int32)
    factor = 32 // bits
    needed = -(-size // factor)
    if words.shape[dim] != needed:
        raise WeightError(
            f"{size} codes of {bits} bits take {needed} int32 words, got {words.shape[dim]} "
            f"(shape {list(words.shape)}, dimension {dim})"
        )
    moved = words.movedim(dim, -1)
    codes = torch.empty((*moved.shape, factor), dtype=torch.uint8, device=words.device)
    for i in range(factor):
        codes[..., i] = (moved >> (bits * i)) & (2**bits - 1)
    return codes.flatten(-2)[..., :size].movedim(-1, dim).contiguous()


def unpack_dense_int32(words: torch.Tensor, bits: int, size: int, dim: int) -> torch.Tensor:
    """Take codes out of int32 words that hold them without gaps: code i begins at bit ``bits * i``.

    Args:
        words: int32.
        bits: 1 to 8.
        size: the length of ``dim`` before packing.
        dim: the packed dimension.

    Returns:
        uint8 codes.

    Raises:
        WeightError: ``words`` has too few or too many words for ``size``, or is no int32, or
            ``bits`` is something else.
    """
    _check(words, bits, torch.int32)
    needed = -(-size * bits // 32)
    if words.shape[dim] != needed:
        raise WeightError(
            f"{size} codes of {bits} bits take {needed} int32 words without gaps, got "
            f"{words.shape[dim]} (shape {list(words.shape)}, dimension {dim})"
        )
    moved = words.movedim(dim, -1)
    # 32 codes fill `bits` words, so that code i of each such run lies at the same place in it.
    padded = torch.nn.functional.pad(moved, (0, -needed % bits))
    runs = padded.reshape(*moved.shape[:-1], padded.shape[-1] // bits, bits)
    codes = torch.empty((*runs.shape[:-1], 32), dtype=torch.uint8, device=words.device)
    for i in range(32):
        word, shift = divmod(bits * i, 32)
        code = runs[..., word] >> shift
        if shift + bits > 32:
            low = 32 - shift
            code = (code & ((1 << low) - 1)) | (runs[..., word + 1] << low)
        codes[..., i] = code & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :size].movedim(-1, dim).contiguous()


def _check(tensor: torch.Tensor, bits: int, dtype: torch.dtype | None = None) -> None:
    if not 1 <= bits <= 8:
        raise WeightError(f"codes of {bits} bits are not packed; 1 to 8 are")
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    if not whole or (dtype is not None and tensor.dtype != dtype):
        needed = "int32" if dtype else "integers"
        given = str(tensor.dtype).removeprefix("torch.")
        raise WeightError(f"{'words' if dtype else 'codes'} are {given}; they must be {needed}")


def pack_uint4(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit codes to a byte along the last dimension, the even element in the low half.

    Raises:
        WeightError: the last dimension is odd.
    """
    if codes.shape[-1] % 2:
        raise WeightError(f"{codes.shape[-1]} codes of 4 bits do not fill bytes")
    codes = codes.to(torch.uint8)
    return (codes[..., ::2] | (codes[..., 1::2] << 4)).contiguous()


def unpack_uint4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_uint4`: uint8 [..., K/2] to uint8 [..., K]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
