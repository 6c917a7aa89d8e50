"""`ScalarType`: a number format, described by its bits; `scalar_types`: the ones in use.

A `torch.dtype` cannot say "4 bits, stored with a bias of 8". The fields and the packed `id` follow
the description that Marlin-style C++ ops take as an integer argument, so an `id` made here means
the same to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

__all__ = ["NanRepr", "ScalarType", "scalar_types"]


class NanRepr(IntEnum):
    """How a floating-point format spells NaN."""

    NONE = 0
    """There is no NaN."""
    IEEE_754 = 1
    """Exponent all ones, mantissa not zero."""
    EXTD_RANGE_MAX_MIN = 2
    """Exponent and mantissa all ones, and nothing else (the ``fn`` formats of OCP)."""


@dataclass(frozen=True)
class ScalarType:
    """A number format.

    Attributes:
        exponent: exponent bits; 0 for integers.
        mantissa: mantissa bits; for integers the magnitude bits (a signed integer has one less
            than its size).
        signed: whether there is a sign bit.
        bias: for integers stored with an offset: ``stored = value + bias``.
        finite_values_only: a float without infinities.
        nan_repr: how a float spells NaN; meaningless for integers.
    """

    exponent: int
    mantissa: int
    signed: bool
    bias: int = 0
    finite_values_only: bool = False
    nan_repr: NanRepr = NanRepr.IEEE_754

    def __post_init__(self) -> None:
        for field in ("exponent", "mantissa"):
            value = getattr(self, field)
            if not 0 <= value <= 255:
                raise ValueError(f"ScalarType.{field} is {value}; it must be in 0..255")
        if self.exponent == 0 and self.mantissa == 0:
            raise ValueError("ScalarType has neither exponent nor mantissa bits")
        if self.exponent and self.bias:
            raise ValueError("ScalarType.bias is for integers; floats have their standard bias")

    # -- makers ------------------------------------------------------------------------------

    @classmethod
    def int_(cls, size_bits: int, bias: int = 0) -> ScalarType:
        """Signed two's-complement integer of ``size_bits``."""
        return cls(0, size_bits - 1, True, bias)

    @classmethod
    def uint(cls, size_bits: int, bias: int = 0) -> ScalarType:
        """Unsigned integer of ``size_bits``, stored as ``value + bias``."""
        return cls(0, size_bits, False, bias)

    @classmethod
    def float_ieee754(cls, exponent: int, mantissa: int) -> ScalarType:
        """Signed float with the infinities and NaNs of IEEE 754."""
        return cls(exponent, mantissa, True)

    @classmethod
    def float_(
        cls, exponent: int, mantissa: int, *, finite_values_only: bool, nan_repr: NanRepr
    ) -> ScalarType:
        """Signed float that differs from IEEE 754 in its special values."""
        return cls(exponent, mantissa, True, 0, finite_values_only, nan_repr)

    # -- questions ---------------------------------------------------------------------------

    @property
    def size_bits(self) -> int:
        """Bits of one value."""
        return self.exponent + self.mantissa + int(self.signed)

    def is_floating_point(self) -> bool:
        """Whether there are exponent bits."""
        return self.exponent != 0

    def is_integer(self) -> bool:
        """Whether there are no exponent bits."""
        return self.exponent == 0

    def is_signed(self) -> bool:
        """Whether there is a sign bit."""
        return self.signed

    def has_bias(self) -> bool:
        """Whether values are stored with an offset."""
        return self.bias != 0

    def has_infs(self) -> bool:
        """Whether infinity can be stored."""
        return self.is_floating_point() and not self.finite_values_only

    def has_nans(self) -> bool:
        """Whether NaN can be stored."""
        return self.is_floating_point() and self.nan_repr is not NanRepr.NONE

    def is_ieee_754(self) -> bool:
        """Whether special values are those of IEEE 754."""
        return (
            self.is_floating_point()
            and self.signed
            and self.nan_repr is NanRepr.IEEE_754
            and not self.finite_values_only
        )

    def max(self) -> int | float:
        """The largest value (after the bias is taken off)."""
        if self.is_integer():
            return (1 << self.mantissa) - 1 - self.bias
        # The code with all bits set is NaN in the fn formats; the whole top exponent is special
        # in IEEE 754.
        exponent = (1 << self.exponent) - 1
        mantissa = (1 << self.mantissa) - 1
        if not self.finite_values_only:
            exponent -= 1
        elif self.nan_repr is NanRepr.EXTD_RANGE_MAX_MIN:
            mantissa -= 1
            if mantissa < 0:  # no mantissa bits (e8m0): NaN takes the top exponent
                exponent, mantissa = exponent - 1, 0
        fraction = 1 + mantissa / (1 << self.mantissa)
        return float(fraction * 2.0 ** (exponent - self.exponent_bias))

    def min(self) -> int | float:
        """The least value (after the bias is taken off)."""
        if self.is_integer():
            return (-(1 << self.mantissa) if self.signed else 0) - self.bias
        if self.signed:
            return -self.max()
        return float(2.0**-self.exponent_bias) if self.mantissa == 0 else 0.0

    @property
    def exponent_bias(self) -> int:
        """The standard exponent bias, ``2**(exponent-1) - 1``; 0 for integers."""
        return (1 << (self.exponent - 1)) - 1 if self.exponent else 0

    @cached_property
    def id(self) -> int:
        """The type packed into an integer, as C++ ops take it.

        From the lowest bit: exponent (8), mantissa (8), signed (1), bias (32),
        finite_values_only (1), nan_repr (8).
        """
        packed, shift = 0, 0
        for value, width in (
            (self.exponent, 8),
            (self.mantissa, 8),
            (int(self.signed), 1),
            (self.bias, 32),
            (int(self.finite_values_only), 1),
            (int(self.nan_repr), 8),
        ):
            packed |= (value & ((1 << width) - 1)) << shift
            shift += width
        return packed

    @classmethod
    def from_id(cls, packed: int) -> ScalarType:
        """The type whose `id` is ``packed``."""
        fields = []
        for width in (8, 8, 1, 32, 1, 8):
            fields.append(packed & ((1 << width) - 1))
            packed >>= width
        exponent, mantissa, signed, bias, finite, nan = fields
        bias = bias - (1 << 32) if bias >= 1 << 31 else bias
        return cls(exponent, mantissa, bool(signed), bias, bool(finite), NanRepr(nan))

    def __str__(self) -> str:
        if self.is_integer():
            name = f"{'int' if self.signed else 'uint'}{self.size_bits}"
            return f"{name}b{self.bias}" if self.bias else name
        suffix = ""
        if self.finite_values_only:
            suffix = "f" if self.nan_repr is NanRepr.NONE else "fn"
        if not self.signed:
            suffix += "u"
        return f"float{self.size_bits}_e{self.exponent}m{self.mantissa}{suffix}"

    def __repr__(self) -> str:
        return f"ScalarType({self})"


class scalar_types:  # noqa: N801 - a namespace, spelt as the field spells it
    """The number formats in use, by name."""

    uint2 = ScalarType.uint(2)
    uint3 = ScalarType.uint(3)
    uint4 = ScalarType.uint(4)
    uint5 = ScalarType.uint(5)
    uint6 = ScalarType.uint(6)
    uint7 = ScalarType.uint(7)
    uint8 = ScalarType.uint(8)
    int4 = ScalarType.int_(4)
    int8 = ScalarType.int_(8)

    # GPTQ's symmetric types: the stored code is value + 2**(bits-1).
    uint2b2 = ScalarType.uint(2, 2)
    uint3b4 = ScalarType.uint(3, 4)
    uint4b8 = ScalarType.uint(4, 8)
    uint5b16 = ScalarType.uint(5, 16)
    uint6b32 = ScalarType.uint(6, 32)
    uint7b64 = ScalarType.uint(7, 64)
    uint8b128 = ScalarType.uint(8, 128)

    float4_e2m1f = ScalarType.float_(2, 1, finite_values_only=True, nan_repr=NanRepr.NONE)
    float6_e2m3f = ScalarType.float_(2, 3, finite_values_only=True, nan_repr=NanRepr.NONE)
    float6_e3m2f = ScalarType.float_(3, 2, finite_values_only=True, nan_repr=NanRepr.NONE)
    float8_e4m3fn = ScalarType.float_(
        4, 3, finite_values_only=True, nan_repr=NanRepr.EXTD_RANGE_MAX_MIN
    )
    float8_e5m2 = ScalarType.float_ieee754(5, 2)
    float8_e8m0fnu = ScalarType(8, 0, False, 0, True, NanRepr.EXTD_RANGE_MAX_MIN)
    float16_e8m7 = ScalarType.float_ieee754(8, 7)
    float16_e5m10 = ScalarType.float_ieee754(5, 10)

    bfloat16 = float16_e8m7
    float16 = float16_e5m10

    @classmethod
    def by_name(cls, name: str) -> ScalarType:
        """The type called ``name``. Raises `ValueError` that lists the names."""
        found = vars(cls).get(name)
        if not isinstance(found, ScalarType):
            known = ", ".join(k for k, v in vars(cls).items() if isinstance(v, ScalarType))
            raise ValueError(f"unknown scalar type {name!r}; known: {known}")
        return found
