"""What the kernels for small floats share: how activations are rounded, how weights are packed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from qcore.facts.quant_key import QuantKey
from qcore.facts.scalar_type import scalar_types
from qcore.numerics.small_floats import decode_e8m0

from qcore_cpu.layout import by_lanes

__all__ = [
    "Packed",
    "Rounding",
    "known_rounding",
    "pack_e2m1",
    "pack_e4m3",
    "rounding_of",
]


# -- activations ---------------------------------------------------------------------------------


class Rounding(NamedTuple):
    """The arguments of ``wfp_linear`` that say how activations are rounded.

    Attributes:
        activations: the format; empty for none.
        group: inputs that share a scale; -1 for those of a row, 0 for all.
        static: whether the scale of all is a tensor of the layer.
    """

    activations: str = ""
    group: int = 0
    static: bool = False


_FORMATS = {torch.float8_e4m3fn: "e4m3", torch.float8_e4m3fnuz: "e4m3fnuz"}


def rounding_of(key: QuantKey | None) -> Rounding | str:
    """How activations are rounded, or in words why they cannot be."""
    if key is None:
        return Rounding()
    unknown = f"activations as {key} are not implemented"
    inner, outer = key.scale, key.scale2
    if key.dtype == scalar_types.float4_e2m1f:
        if outer is None:
            return Rounding("mxfp4") if tuple(inner.group_shape) == (1, 32) else unknown
        if tuple(inner.group_shape) != (1, 16):
            return unknown
        if outer.group_shape.is_per_tensor():
            return Rounding("nvfp4", 0, outer.static)
        per_token = outer.group_shape.is_per_token() and not outer.static
        return Rounding("nvfp4", -1) if per_token else unknown
    if not isinstance(key.dtype, torch.dtype) or key.dtype not in _FORMATS:
        return unknown
    name = _FORMATS[key.dtype]
    if inner.dtype == torch.uint8:
        is_mx = name == "e4m3" and tuple(inner.group_shape) == (1, 32)
        return Rounding("mxfp8") if is_mx else unknown
    if inner.static:
        return unknown if inner.group_shape.is_per_group() else Rounding(name, 0, True)
    if inner.group_shape.is_per_tensor():
        return Rounding(name)
    if inner.group_shape.is_per_token():
        return Rounding(name, -1)
    return Rounding(name, inner.group_shape.col) if inner.group_shape.is_per_group() else unknown


def known_rounding(key: QuantKey | None) -> Rounding:
    """The same of activations that `can_implement` has let pass."""
    rounding = rounding_of(key)
    assert isinstance(rounding, Rounding)
    return rounding


# -- weights -------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """The tensors of ``wfp_linear`` that hold a weight; ``perm`` is empty where none is needed."""

    packed: torch.Tensor
    scale: torch.Tensor
    perm: torch.Tensor
    chunks: torch.Tensor


def pack_e2m1(weight: torch.Tensor, scale: torch.Tensor, group_size: int) -> Packed:
    """Weights of e2m1.

    Args:
        weight: uint8 [N, K / 2].
        scale: float, e4m3 or (uint8) e8m0 [N, K / group_size].
        group_size: inputs that share a scale.
    """
    words = weight.contiguous().view(torch.int32)
    packed, wide, _, perm, chunks = torch.ops.qcore_cpu.wna16_pack(
        words, _wide(scale).contiguous(), None, None, 4, 8, group_size, 2 * weight.shape[1]
    )
    return Packed(packed, by_lanes(scale) if _stays_small(scale) else wide, perm, chunks)


def pack_e4m3(
    weight: torch.Tensor, scale: torch.Tensor, group_size: int, input_group: int = 0
) -> Packed:
    """Weights of e4m3 or e4m3fnuz.

    The kernels know no NaN: an output with such a weight gets a scale of NaN, by which it is NaN
    whatever the input is, as it would be anyway. But for that and for -0, the codes of e4m3fnuz
    are those of twice its values.

    Args:
        weight: [N, K].
        scale: float or (uint8) e8m0 [N, groups].
        group_size: inputs that share a scale; -1 for all.
        input_group: activations that share a scale; 0 and less if not by groups.
    """
    K = weight.shape[1]
    codes = weight.contiguous().view(torch.uint8)
    is_fnuz = weight.dtype == torch.float8_e4m3fnuz
    nan = (codes == 0x80 if is_fnuz else (codes & 0x7F) == 0x7F).any(1, keepdim=True)
    if is_fnuz or nan.any() or not _stays_small(scale):
        scale = _wide(scale).masked_fill(nan, float("nan"))
    if is_fnuz:
        scale = scale.to(torch.float32) * 0.5
    size, group_of = K if group_size == -1 else group_size, None
    if input_group > 0 and input_group % size:
        # Products that are summed up together share a scale of the weight and one of the input.
        inputs = torch.arange(K)
        pairs = torch.stack((inputs // size, inputs // input_group), 1)
        pairs, part_of = torch.unique_consecutive(pairs, dim=0, return_inverse=True)
        scale = scale[:, pairs[:, 0]]
        if size % input_group == 0:
            size = input_group
        else:
            group_of = part_of.to(torch.int32)
    packed, wide, _, perm, chunks = torch.ops.qcore_cpu.wna16_pack(
        codes.view(torch.int8), _wide(scale).contiguous(), None, group_of, 8, 0, size, K
    )
    blocks, words, lanes = packed.shape
    data = packed.view(torch.uint8)
    slots = data.reshape(blocks, words, 4, lanes)[:, :, [0, 2, 1, 3]]
    data.reshape(blocks, words, lanes, 4).copy_(slots.transpose(2, 3))
    return Packed(packed, by_lanes(scale) if scale.dtype.itemsize == 1 else wide, perm, chunks)


def _stays_small(scale: torch.Tensor) -> bool:
    """Whether the kernels take these scales as bytes: they know neither NaN nor 2^-127."""
    if scale.dtype == torch.uint8:
        return not bool(((scale == 0) | (scale == 255)).any())
    if scale.dtype == torch.float8_e4m3fn:
        return not bool(((scale.view(torch.uint8) & 0x7F) == 0x7F).any())
    return False


def _wide(scale: torch.Tensor) -> torch.Tensor:
    """Scales of one byte as bfloat16, which holds them exactly."""
    if scale.dtype == torch.uint8:
        return decode_e8m0(scale).to(torch.bfloat16)
    return scale.to(torch.bfloat16) if scale.dtype == torch.float8_e4m3fn else scale
