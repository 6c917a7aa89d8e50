import pytest
import torch
from qcore.errors import ConfigError
from qcore.facts import quant_key as qk
from qcore.facts.quant_key import GroupShape, QuantKey


def test_group_shapes_know_their_kind():
    assert GroupShape.PER_TENSOR.is_per_tensor()
    assert GroupShape.PER_TOKEN.is_per_token()
    assert GroupShape.PER_CHANNEL.is_per_channel()
    assert GroupShape(1, 128).is_per_group()
    assert GroupShape(128, 128).is_per_block()
    assert not GroupShape(1, 128).is_per_block()
    assert GroupShape(1, 128) == (1, 128)


@pytest.mark.parametrize("sides", [(0, 1), (1, -2), (1.5, 1), (True, 1)])
def test_bad_group_shapes(sides):
    with pytest.raises(ConfigError, match="GroupShape"):
        GroupShape(*sides)


@pytest.mark.parametrize(
    ("name", "dtype", "static", "group"),
    [
        ("kFp8StaticTensorSym", torch.float8_e4m3fn, True, (-1, -1)),
        ("kFp8DynamicTensorSym", torch.float8_e4m3fn, False, (-1, -1)),
        ("kFp8DynamicTokenSym", torch.float8_e4m3fn, False, (1, -1)),
        ("kFp8Dynamic128Sym", torch.float8_e4m3fn, False, (1, 128)),
        ("kFp8Static128BlockSym", torch.float8_e4m3fn, True, (128, 128)),
        ("kMxfp8Dynamic", torch.float8_e4m3fn, False, (1, 32)),
        ("kInt8DynamicTokenSym", torch.int8, False, (1, -1)),
    ],
)
def test_constants(name, dtype, static, group):
    key = getattr(qk, name)
    assert key.dtype == dtype
    assert key.scale.static is static
    assert key.scale.group_shape == group


def test_nvfp4_has_two_levels():
    assert qk.kNvfp4Static.scale.group_shape == (1, 16)
    assert qk.kNvfp4Static.scale.dtype == torch.float8_e4m3fn
    assert qk.kNvfp4Static.scale2.group_shape.is_per_tensor()
    assert qk.kMxfp4Static.scale2 is None


def test_keys_are_values():
    assert len({qk.kFp8StaticTensorSym, qk.kFp8StaticTensorSym}) == 1
    assert isinstance(hash(qk.kNvfp4Dynamic), int)
    names = [name for name in qk.__all__ if name.startswith("k")]
    assert len(names) > 20
    assert all(isinstance(getattr(qk, name), QuantKey) for name in names)
