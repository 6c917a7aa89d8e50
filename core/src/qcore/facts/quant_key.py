"""How a tensor is quantized: `GroupShape`, `ScaleDesc`, `QuantKey` and the combinations in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from qcore.errors import ConfigError
from qcore.facts.scalar_type import ScalarType, scalar_types

__all__ = ["FP8_DTYPE", "GroupShape", "QuantKey", "ScaleDesc"]

FP8_DTYPE = torch.float8_e4m3fn
"""The 8-bit float of the OCP standard. gfx942 wants e4m3fnuz, which is a repack, not a key."""


class _Group(NamedTuple):
    row: int
    col: int


class GroupShape(_Group):
    """How many elements share one scale, as (rows, columns); -1 is "all of them".

    A weight is [N, K] and an activation [M, K], so rows are output channels or tokens. Questions
    compare the sides and not the pair, which torch.compile of torch 2.11 gets wrong.
    """

    PER_TENSOR: ClassVar[GroupShape]
    PER_TOKEN: ClassVar[GroupShape]
    PER_CHANNEL: ClassVar[GroupShape]

    __slots__ = ()

    def __new__(cls, row: int, col: int) -> GroupShape:
        """A shape; each side is -1 or at least 1."""
        for name, side in (("row", row), ("col", col)):
            if not isinstance(side, int) or isinstance(side, bool) or side == 0 or side < -1:
                raise ConfigError(
                    f"GroupShape.{name} is {side!r}; it must be -1 (all) or at least 1"
                )
        return super().__new__(cls, row, col)

    def is_per_tensor(self) -> bool:
        """One scale for the tensor."""
        return self.row == -1 and self.col == -1

    def is_per_token(self) -> bool:
        """One scale a row."""
        return self.row == 1 and self.col == -1

    def is_per_channel(self) -> bool:
        """One scale a column (of a [K, N] weight)."""
        return self.row == -1 and self.col == 1

    def is_per_group(self) -> bool:
        """One scale for some columns of one row."""
        return self.row == 1 and self.col >= 1

    def is_per_block(self) -> bool:
        """One scale for a rectangle of more than one row."""
        return self.row > 1 and self.col >= 1

    def __str__(self) -> str:
        if self.is_per_tensor():
            return "tensor"
        if self.is_per_token():
            return "token"
        if self.is_per_channel():
            return "channel"
        return f"{self.row}x{self.col}"


GroupShape.PER_TENSOR = GroupShape(-1, -1)
GroupShape.PER_TOKEN = GroupShape(1, -1)
GroupShape.PER_CHANNEL = GroupShape(-1, 1)


@dataclass(frozen=True)
class ScaleDesc:
    """One level of scales.

    Attributes:
        dtype: of the scales; ``torch.uint8`` stands for e8m0 exponents.
        static: known before the input is (True), or computed from it (False).
        group_shape: which elements share one.
    """

    dtype: torch.dtype
    static: bool
    group_shape: GroupShape

    def __str__(self) -> str:
        return f"{'static' if self.static else 'dynamic'} {self.group_shape}"


@dataclass(frozen=True)
class QuantKey:
    """How a tensor is quantized.

    Attributes:
        dtype: the stored number, a `torch.dtype`, or a `ScalarType` where torch has none.
        scale: the scales.
        scale2: scales of the scales (NVFP4's global scale), if any.
        symmetric: no zero point.
    """

    dtype: torch.dtype | ScalarType
    scale: ScaleDesc
    scale2: ScaleDesc | None = None
    symmetric: bool = True

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        second = f" + {self.scale2}" if self.scale2 else ""
        return f"{dtype} {self.scale}{second}{'' if self.symmetric else ' asymmetric'}"


def _scale(group: GroupShape, static: bool, dtype: torch.dtype = torch.float32) -> ScaleDesc:
    return ScaleDesc(dtype, static, group)


_TENSOR, _TOKEN, _CHANNEL = GroupShape.PER_TENSOR, GroupShape.PER_TOKEN, GroupShape.PER_CHANNEL
_FP4 = scalar_types.float4_e2m1f

# FP8 e4m3, scales in float32.
kFp8StaticTensorSym = QuantKey(FP8_DTYPE, _scale(_TENSOR, True))
kFp8DynamicTensorSym = QuantKey(FP8_DTYPE, _scale(_TENSOR, False))
kFp8StaticTokenSym = QuantKey(FP8_DTYPE, _scale(_TOKEN, True))
kFp8DynamicTokenSym = QuantKey(FP8_DTYPE, _scale(_TOKEN, False))
kFp8StaticChannelSym = QuantKey(FP8_DTYPE, _scale(_CHANNEL, True))
kFp8Dynamic128Sym = QuantKey(FP8_DTYPE, _scale(GroupShape(1, 128), False))
kFp8Dynamic64Sym = QuantKey(FP8_DTYPE, _scale(GroupShape(1, 64), False))
kFp8Static128BlockSym = QuantKey(FP8_DTYPE, _scale(GroupShape(128, 128), True))

# NVFP4: e2m1, an e4m3 scale for 16 elements, a float32 scale for the tensor.
_NVFP4_BLOCK = GroupShape(1, 16)
kNvfp4Static = QuantKey(_FP4, _scale(_NVFP4_BLOCK, True, FP8_DTYPE), _scale(_TENSOR, True))
kNvfp4Dynamic = QuantKey(_FP4, _scale(_NVFP4_BLOCK, False, FP8_DTYPE), _scale(_TENSOR, True))
kNvfp4DynamicToken = QuantKey(_FP4, _scale(_NVFP4_BLOCK, False, FP8_DTYPE), _scale(_TOKEN, False))

# The OCP microscaling formats: an e8m0 scale (stored as uint8) for 32 elements.
_MX_BLOCK = GroupShape(1, 32)
kMxfp4Static = QuantKey(_FP4, _scale(_MX_BLOCK, True, torch.uint8))
kMxfp4Dynamic = QuantKey(_FP4, _scale(_MX_BLOCK, False, torch.uint8))
kMxfp6E3M2Static = QuantKey(scalar_types.float6_e3m2f, _scale(_MX_BLOCK, True, torch.uint8))
kMxfp6E3M2Dynamic = QuantKey(scalar_types.float6_e3m2f, _scale(_MX_BLOCK, False, torch.uint8))
kMxfp6E2M3Static = QuantKey(scalar_types.float6_e2m3f, _scale(_MX_BLOCK, True, torch.uint8))
kMxfp6E2M3Dynamic = QuantKey(scalar_types.float6_e2m3f, _scale(_MX_BLOCK, False, torch.uint8))
kMxfp6Static, kMxfp6Dynamic = kMxfp6E3M2Static, kMxfp6E3M2Dynamic
kMxfp8Static = QuantKey(FP8_DTYPE, _scale(_MX_BLOCK, True, torch.uint8))
kMxfp8Dynamic = QuantKey(FP8_DTYPE, _scale(_MX_BLOCK, False, torch.uint8))

# Integers.
kInt8StaticTensorSym = QuantKey(torch.int8, _scale(_TENSOR, True))
kInt8StaticTensorAsym = QuantKey(torch.int8, _scale(_TENSOR, True), symmetric=False)
kInt8StaticChannelSym = QuantKey(torch.int8, _scale(_CHANNEL, True))
kInt8DynamicTokenSym = QuantKey(torch.int8, _scale(_TOKEN, False))
kInt8DynamicTokenAsym = QuantKey(torch.int8, _scale(_TOKEN, False), symmetric=False)
kInt8Dynamic32Sym = QuantKey(torch.int8, _scale(_MX_BLOCK, False))
kInt4Static = QuantKey(scalar_types.uint4b8, _scale(GroupShape(1, 128), True))
kInt4StaticAsym = QuantKey(scalar_types.uint4, _scale(GroupShape(1, 128), True), symmetric=False)
kInt4Static32 = QuantKey(scalar_types.uint4b8, _scale(_MX_BLOCK, True))
kInt4Static32Asym = QuantKey(scalar_types.uint4, _scale(_MX_BLOCK, True), symmetric=False)

__all__ += [name for name in dict(globals()) if name[0] == "k" and name[1].isupper()]
