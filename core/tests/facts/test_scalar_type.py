import pytest
from qcore.facts.scalar_type import NanRepr, ScalarType, scalar_types

# name, exponent, mantissa, signed, bias, bits, has_nans, has_infs, ieee, least, greatest
TABLE = [
    ("uint2", 0, 2, False, 0, 2, False, False, False, 0, 3),
    ("uint3", 0, 3, False, 0, 3, False, False, False, 0, 7),
    ("uint4", 0, 4, False, 0, 4, False, False, False, 0, 15),
    ("uint8", 0, 8, False, 0, 8, False, False, False, 0, 255),
    ("int4", 0, 3, True, 0, 4, False, False, False, -8, 7),
    ("int8", 0, 7, True, 0, 8, False, False, False, -128, 127),
    ("uint2b2", 0, 2, False, 2, 2, False, False, False, -2, 1),
    ("uint3b4", 0, 3, False, 4, 3, False, False, False, -4, 3),
    ("uint4b8", 0, 4, False, 8, 4, False, False, False, -8, 7),
    ("uint8b128", 0, 8, False, 128, 8, False, False, False, -128, 127),
    ("float8_e4m3fn", 4, 3, True, 0, 8, True, False, False, -448.0, 448.0),
    ("float8_e5m2", 5, 2, True, 0, 8, True, True, True, -57344.0, 57344.0),
    ("float16", 5, 10, True, 0, 16, True, True, True, -65504.0, 65504.0),
    (
        "bfloat16",
        8,
        7,
        True,
        0,
        16,
        True,
        True,
        True,
        -3.3895313892515355e38,
        3.3895313892515355e38,
    ),
    ("float6_e3m2f", 3, 2, True, 0, 6, False, False, False, -28.0, 28.0),
    ("float6_e2m3f", 2, 3, True, 0, 6, False, False, False, -7.5, 7.5),
    ("float4_e2m1f", 2, 1, True, 0, 4, False, False, False, -6.0, 6.0),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_facts_of_the_types(row):
    name, exponent, mantissa, signed, bias, bits, nans, infs, ieee, least, greatest = row
    kind = getattr(scalar_types, name)
    assert (kind.exponent, kind.mantissa, kind.signed, kind.bias) == (
        exponent,
        mantissa,
        signed,
        bias,
    )
    assert kind.size_bits == bits
    assert kind.has_nans() is nans
    assert kind.has_infs() is infs
    assert kind.is_ieee_754() is ieee
    assert (kind.min(), kind.max()) == (least, greatest)


@pytest.mark.parametrize("name", ["uint5", "uint6", "uint7", "uint5b16", "uint6b32", "uint7b64"])
def test_every_type_of_the_seed_exists(name):
    assert str(getattr(scalar_types, name)) == name


def test_aliases():
    assert scalar_types.float16_e8m7 == scalar_types.bfloat16
    assert scalar_types.float16_e5m10 == scalar_types.float16


def test_id_is_the_documented_bit_field():
    # exponent | mantissa << 8 | signed << 16 | bias << 17 | finite << 49 | nan << 50
    kind = scalar_types.uint4b8
    assert kind.id == (4 << 8) | (8 << 17) | (int(kind.nan_repr) << 50)
    e4m3 = scalar_types.float8_e4m3fn
    assert e4m3.id == 4 | (3 << 8) | (1 << 16) | (1 << 49) | (NanRepr.EXTD_RANGE_MAX_MIN << 50)


def test_id_round_trip():
    for name, *_ in TABLE:
        kind = getattr(scalar_types, name)
        assert ScalarType.from_id(kind.id) == kind


@pytest.mark.parametrize(
    "fields", [(0, 0, False), (300, 0, False), (-1, 3, True)], ids=["empty", "wide", "negative"]
)
def test_bad_fields_are_refused(fields):
    with pytest.raises(ValueError, match="ScalarType"):
        ScalarType(*fields)
