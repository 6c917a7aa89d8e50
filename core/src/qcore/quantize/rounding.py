"""`round_weight`: a weight to the tensors of a `QuantizeScheme`, some rows at a time.

The scale of a group starts at the one that just covers its values. With a search, several parts of
it are tried and the one with the least squared error is kept: a few values are clipped so that all
the others lie closer together. Codes are always made from the scale *as it is stored* (bfloat16 has
eight bits of it), so that what is read back is what was weighed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from qcore.numerics.packing import pack_int32, pack_uint4
from qcore.quantize.config_groups import weight_tensors
from qcore.quantize.float_rounding import (
    nvfp4_global_scale,
    round_fp8,
    round_mx,
    round_nvfp4,
)
from qcore.quantize.integer_rounding import RATIOS, round_integers
from qcore.quantize.scheme import FP8_BLOCK, QuantizeScheme

__all__ = ["RATIOS", "RoundedWeight", "round_weight"]

_CHUNK = 1 << 17
"""Elements that are worked on at a time: few enough to stay in the cache in float32."""

_DEVICE_CHUNK = 1 << 23
"""The same where each operation is a launch: on a GPU."""


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight.

    Attributes:
        tensors: by the name that compressed-tensors gives them after the layer's.
        relative_error: ``|w - rounded| / |w|``, in the 2-norm.
    """

    tensors: dict[str, torch.Tensor]
    relative_error: float


def round_weight(
    weight: torch.Tensor, scheme: QuantizeScheme, *, search: bool = True
) -> RoundedWeight:
    """Round a weight. Beside the result it takes the memory of a few rows.

    Args:
        weight: float [N, K]; K a multiple of the scheme's group.
        scheme: to what.
        search: choose scales by the squared error, where that helps, instead of by the largest
            magnitude alone.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    N, K = weight.shape
    tensors = {
        name: torch.empty(shape, dtype=dtype, device=weight.device)
        for name, (dtype, shape) in weight_tensors(scheme, N, K, weight.dtype).items()
    }
    if "weight_zero_point" in tensors:  # packed along N, so at the end
        tensors["weight_zero_point"] = torch.empty(
            (N, scheme.groups(K)), dtype=torch.uint8, device=weight.device
        )
    if "weight_shape" in tensors:
        tensors["weight_shape"] = torch.tensor([N, K], dtype=torch.int64)
    round_part = _rounder(weight, scheme, search, tensors)

    blocks = scheme.weights == "fp8-block"

    def round_part_of(part: tuple[slice, slice]) -> tuple[float, float]:
        """Round a rectangle; gives the squares of what is lost and of what was there."""
        rows, columns = part
        x = weight[rows, columns].to(torch.float32)
        total = float(torch.linalg.vector_norm(x)) ** 2
        if not math.isfinite(total):
            raise ValueError("it holds NaN or infinity")
        pieces, error = round_part(x)
        for name, piece in pieces.items():
            by = FP8_BLOCK if blocks and name == "weight_scale" else 1
            top, left = rows.start // by, columns.start // by
            tensors[name][top : top + piece.shape[0], left : left + piece.shape[1]] = piece
        return float(error.sum(dtype=torch.float64)), total

    with _workers() as for_all:
        sums = list(for_all(round_part_of, _parts(weight, scheme)))
    lost, total = (math.fsum(sum[i] for sum in sums) for i in (0, 1))
    if "weight_zero_point" in tensors:
        zeros = tensors["weight_zero_point"]
        tensors["weight_zero_point"] = pack_int32(zeros, scheme.bits, dim=0)
    return RoundedWeight(tensors, (lost / total) ** 0.5 if total else 0.0)


def _parts(weight: torch.Tensor, scheme: QuantizeScheme) -> list[tuple[slice, slice]]:
    """Rows and columns to take together: whole rows; of blocks, some of a row of them."""
    N, K = weight.shape
    chunk = _CHUNK if weight.device.type == "cpu" else _DEVICE_CHUNK
    rows, columns = max(1, chunk // max(K, 1)), K
    if scheme.weights == "fp8-block":
        rows = max(1, rows // FP8_BLOCK) * FP8_BLOCK
        columns = max(1, chunk // rows // FP8_BLOCK) * FP8_BLOCK
    return [
        (slice(top, min(top + rows, N)), slice(left, min(left + columns, K)))
        for top in range(0, N, rows)
        for left in range(0, K, max(columns, 1))
    ]


@contextmanager
def _workers() -> Iterator[Callable[..., Iterable[tuple[float, float]]]]:
    """A ``map`` with as many threads as torch uses, each of which runs its operations alone.

    The operations are short: dividing each among threads costs more than it gains, and very much
    more on a busy machine. malloc keeps memory for every thread, so that one does without.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as workers:
            yield workers.map
    finally:
        torch.set_num_threads(threads)


Rounder = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""Rounds a rectangle (float32): its part of each tensor, and squared errors."""


def _rounder(
    weight: torch.Tensor,
    scheme: QuantizeScheme,
    search: bool,
    tensors: dict[str, torch.Tensor],
) -> Rounder:
    """What rounds rows of this weight. Scales of the whole tensor are put into ``tensors``."""
    if scheme.weights == "int":
        return partial(_integers, scheme=scheme, dtype=weight.dtype, search=search)
    if scheme.weights in ("mxfp8", "mxfp4"):
        return partial(_mx, scheme=scheme, search=search)
    if scheme.weights == "nvfp4":
        global_scale = nvfp4_global_scale(_amax(weight))
        tensors["weight_global_scale"] = global_scale
        return partial(_nvfp4, scheme=scheme, global_scale=global_scale, search=search)
    dtype = tensors["weight_scale"].dtype
    if scheme.weights == "fp8-tensor":
        amax = _amax(weight)
        tensors["weight_scale"] = round_fp8(amax, amax, dtype)[1].to(dtype).reshape(1)
        return partial(_fp8_tensor, amax=amax, dtype=dtype)
    return partial(_fp8_block if scheme.weights == "fp8-block" else _fp8_channel, dtype=dtype)


def _amax(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude, float32 [1, 1]."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high).to(torch.float32).reshape(1, 1)


Pieces = tuple[dict[str, torch.Tensor], torch.Tensor]


def _integers(
    x: torch.Tensor, *, scheme: QuantizeScheme, dtype: torch.dtype, search: bool
) -> Pieces:
    rows, K = x.shape
    G = scheme.groups(K)
    codes, scale, zero, error = round_integers(
        x.reshape(-1, K // G), scheme.bits, symmetric=scheme.symmetric, dtype=dtype, search=search
    )
    codes = codes.reshape(rows, K)
    pieces = {"weight_scale": scale.reshape(rows, G).to(dtype)}
    if not scheme.packed:
        return pieces | {"weight": codes.to(torch.int8)}, error
    offset = (1 << scheme.bits) >> 1 if scheme.symmetric else 0
    pieces["weight_packed"] = pack_int32((codes + offset).to(torch.uint8), scheme.bits, dim=1)
    if not scheme.symmetric:
        pieces["weight_zero_point"] = zero.reshape(rows, G).to(torch.uint8)
    return pieces, error


def _mx(x: torch.Tensor, *, scheme: QuantizeScheme, search: bool) -> Pieces:
    codes, scale, error = round_mx(x.reshape(-1, scheme.group_size), scheme.weights, search)
    codes, scale = codes.reshape(x.shape), scale.reshape(len(x), -1)
    if scheme.weights == "mxfp8":
        return {"weight": codes, "weight_scale": scale}, error
    return {"weight_packed": pack_uint4(codes), "weight_scale": scale}, error


def _nvfp4(
    x: torch.Tensor, *, scheme: QuantizeScheme, global_scale: torch.Tensor, search: bool
) -> Pieces:
    groups = x.reshape(-1, scheme.group_size)
    codes, scale, error = round_nvfp4(groups, global_scale, search)
    pieces = {"weight_packed": pack_uint4(codes.reshape(x.shape))}
    return pieces | {"weight_scale": scale.reshape(len(x), -1)}, error


def _fp8_tensor(x: torch.Tensor, *, amax: torch.Tensor, dtype: torch.dtype) -> Pieces:
    codes, _, error = round_fp8(x, amax, dtype)
    return {"weight": codes}, error


def _fp8_channel(x: torch.Tensor, *, dtype: torch.dtype) -> Pieces:
    codes, scale, error = round_fp8(x, x.abs().amax(-1, keepdim=True), dtype)
    return {"weight": codes, "weight_scale": scale.to(dtype)}, error


def _fp8_block(x: torch.Tensor, *, dtype: torch.dtype) -> Pieces:
    """Blocks are laid out as groups; those at the edges are filled up with zeros."""
    rows, K = x.shape
    down, across = -(-rows // FP8_BLOCK), -(-K // FP8_BLOCK)
    fill = (0, across * FP8_BLOCK - K, 0, down * FP8_BLOCK - rows)
    blocks = torch.nn.functional.pad(x, fill).reshape(down, FP8_BLOCK, across, FP8_BLOCK)
    groups = blocks.transpose(1, 2).reshape(down * across, -1)
    codes, scale, error = round_fp8(groups, groups.abs().amax(-1, keepdim=True), dtype)
    codes = codes.reshape(down, across, FP8_BLOCK, FP8_BLOCK).transpose(1, 2)
    codes = codes.reshape(down * FP8_BLOCK, across * FP8_BLOCK)[:rows, :K]
    return {"weight": codes, "weight_scale": scale.reshape(down, across).to(dtype)}, error
