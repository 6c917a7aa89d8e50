import pytest
import torch
from qcore.errors import ConfigError
from qcore.facts.scalar_type import scalar_types
from qcore.layers import MoeWNA16LayerConfig


def experts(**changes):
    fields = {
        "num_experts": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "weight_type": scalar_types.uint4b8,
        "act_type": torch.bfloat16,
        "group_size": 32,
        "zero_points": False,
    }
    return MoeWNA16LayerConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 0}, "num_experts is 0; it must be a positive integer"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"intermediate_size": True}, "intermediate_size is True"),
        ({"weight_type": scalar_types.int4}, "weight_type is int4; allowed: uint2"),
        ({"act_type": torch.int8}, "act_type is torch.int8"),
        ({"group_size": 0}, "group_size is 0; it must be -1"),
        ({"zero_points": True}, "zero_points is True with weight_type uint4b8"),
        ({"has_g_idx": None}, "has_g_idx is None"),
        ({"activation": "relu"}, "activation is 'relu'; allowed: silu, gelu, gelu_tanh"),
    ],
)
def test_what_cannot_be(changes, words):
    with pytest.raises(ConfigError, match=words):
        experts(**changes)


def test_canonical_shapes():
    config = experts(weight_type=scalar_types.uint4, zero_points=True, has_g_idx=True)
    shapes = {name: spec.shape for name, spec in config.params().items()}
    assert shapes == {
        "w13_packed": ((4, 192, 8),),
        "w13_scale": ((4, 192, 2),),
        "w13_zero_point": ((4, 24, 2),),
        "w13_g_idx": ((4, 64),),
        "w2_packed": ((4, 64, 12),),
        "w2_scale": ((4, 64, 3),),
        "w2_zero_point": ((4, 8, 3),),
        "w2_g_idx": ((4, 96),),
    }
    assert not any(spec.optional for spec in config.params().values())
    assert config.params()["w13_packed"].attrs["packed_dim"] == 2
    assert config.describe() == (
        "4 experts of 96, silu, uint4 g32, zero points, g_idx, bfloat16 activations"
    )


def test_a_group_as_wide_as_one_projection_only():
    config = experts(group_size=64)
    assert config.params()["w13_scale"].shape == ((4, 192, 1),)
    assert config.params()["w2_scale"].shape == ((4, 64, 2),)
    assert config.projection("w13").group_size == -1
