import dataclasses

import pytest
import torch
from qcore.errors import ConfigError, WeightError
from qcore.facts.quant_key import (
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)
from qcore.facts.scalar_type import scalar_types
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.params import check_params


def mp(**changes):
    fields = {
        "full_weight_shape": (256, 96),
        "partition_weight_shape": (256, 96),
        "weight_type": scalar_types.uint4b8,
        "act_type": torch.bfloat16,
        "group_size": 128,
        "zero_points": False,
    }
    return MPLinearLayerConfig(**{**fields, **changes})


def test_configs_are_frozen_values():
    config = mp()
    assert config == mp()
    assert hash(config) == hash(mp())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.group_size = 32
    assert (config.in_features, config.out_features) == (256, 96)
    assert config.to_dict()["weight_type"] == "uint4b8"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group_size": 0}, "group_size"),
        ({"group_size": -2}, "group_size"),
        ({"weight_type": scalar_types.float16}, "weight_type"),
        ({"act_type": torch.int32}, "act_type"),
        ({"out_type": torch.int8}, "out_type"),
        ({"zero_points": True}, "zero_points"),
        ({"has_g_idx": 1}, "has_g_idx"),
        ({"full_weight_shape": (256,)}, "full_weight_shape"),
        ({"partition_weight_shape": (0, 96)}, "partition_weight_shape"),
        ({"partition_weight_shape": (512, 96)}, "partition_weight_shape"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_bad_fields_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        mp(**change)


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, {"weight_packed": (96, 32), "weight_scale": (96, 2)}),
        ({"group_size": -1}, {"weight_scale": (96, 1)}),
        ({"group_size": 100}, {"weight_scale": (96, 3)}),
        ({"group_size": 1000}, {"weight_scale": (96, 1)}),
        (
            {"weight_type": scalar_types.uint4, "zero_points": True},
            {"weight_zero_point": (12, 2)},
        ),
        ({"weight_type": scalar_types.uint3b4}, {"weight_packed": (96, 26)}),
        ({"weight_type": scalar_types.int8}, {"weight_packed": (96, 256)}),
        ({"has_g_idx": True}, {"weight_g_idx": (256,)}),
    ],
)
def test_canonical_shapes_of_mixed_precision(changes, shapes):
    params = mp(**changes).params()
    for name, shape in shapes.items():
        assert params[name].fits(shape), (name, params[name].describe_shape())
        assert not params[name].optional


def test_fp8_configs_refuse_the_other_kind_of_scales():
    common = {
        "activation_quant_key": kFp8DynamicTokenSym,
        "weight_shape": (96, 256),
        "input_dtype": torch.bfloat16,
        "out_dtype": torch.bfloat16,
    }
    FP8ScaledMMLinearLayerConfig(weight_quant_key=kFp8StaticChannelSym, **common)
    with pytest.raises(ConfigError, match="blocks"):
        FP8ScaledMMLinearLayerConfig(weight_quant_key=kFp8Static128BlockSym, **common)
    with pytest.raises(ConfigError, match="weight_quant_key"):
        Fp8BlockScaledMMLinearLayerConfig(
            **{**common, "activation_quant_key": kFp8Dynamic128Sym},
            weight_quant_key=kFp8StaticTensorSym,
        )
    block = Fp8BlockScaledMMLinearLayerConfig(
        **{**common, "activation_quant_key": kFp8Dynamic128Sym, "weight_shape": (200, 300)},
        weight_quant_key=kFp8Static128BlockSym,
    )
    assert block.params()["weight_scale_inv"].fits((2, 3))


def test_optional_bound_of_fp8_inputs():
    config = FP8ScaledMMLinearLayerConfig(
        weight_quant_key=kFp8StaticChannelSym,
        activation_quant_key=kFp8DynamicTokenSym,
        weight_shape=(96, 256),
        input_dtype=torch.bfloat16,
        out_dtype=torch.bfloat16,
    )
    assert config.params()["input_scale_ub"].optional


def test_activations_that_a_mixed_precision_kernel_makes():
    for dtype in (torch.int8, torch.float8_e4m3fn):
        assert mp(act_type=dtype, out_type=torch.bfloat16).activation_dtype == dtype


@pytest.mark.parametrize(
    ("config_class", "K"),
    [(NvFp4LinearLayerConfig, 40), (MxFp4LinearLayerConfig, 48), (Mxfp8LinearLayerConfig, 48)],
)
def test_block_formats_need_whole_blocks(config_class, K):
    with pytest.raises(ConfigError, match="multiple"):
        config_class(weight_shape=(8, K))
    config_class()  # without a shape, as vLLM's are


def test_int8_config():
    config = Int8ScaledMMLinearLayerConfig(True, False, False, weight_shape=(96, 256))
    params = config.params()
    assert not params["input_zero_point"].optional
    assert params["weight_scale"].fits((1,))
    with pytest.raises(ConfigError, match="input_symmetric"):
        Int8ScaledMMLinearLayerConfig(True, False, None)


def test_check_params_names_the_tensor():
    params = mp().params()
    good = {
        "weight_packed": torch.zeros(96, 32, dtype=torch.int32),
        "weight_scale": torch.zeros(96, 2),
    }
    check_params(params, good, "layer")
    for name, bad, words in [
        ("weight_scale", None, "missing"),
        ("weight_scale", torch.zeros(96, 3), r"\[96, 3\].*\[96, 2\]"),
        ("weight_packed", torch.zeros(96, 32), "float32.*int32"),
        ("weight_g", torch.zeros(1), "no place"),
    ]:
        with pytest.raises(WeightError, match=words) as caught:
            check_params(params, {**good, name: bad}, "model.layer")
        assert name in str(caught.value)
        assert "model.layer" in str(caught.value)


def test_codebook():
    config = CodebookLinearLayerConfig((96, 200), 3, 64, True, torch.float16)
    assert (config.in_features, config.out_features, config.num_groups) == (200, 96, 4)
    assert config.describe() == "3 bit codebook g64, offsets, float16 activations"
    shapes = {name: spec.shape for name, spec in config.params().items()}
    assert shapes["weight_packed"] == ((96, 20),)
    assert shapes["weight_codebook"] == ((8,),)
    assert shapes["weight_scale"] == shapes["weight_offset"] == ((96, 4),)
    assert CodebookLinearLayerConfig((96, 200), 4, -1).params()["weight_offset"].optional


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight_shape": (96,)}, "weight_shape"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 0}, "bits is 0"),
        ({"group_size": 0}, "group_size is 0"),
        ({"has_offset": 1}, "has_offset"),
        ({"input_dtype": torch.int8}, "input_dtype"),
    ],
)
def test_codebooks_that_cannot_be(change, named):
    fields = {"weight_shape": (96, 256), "bits": 4, "group_size": 64}
    with pytest.raises(ConfigError, match=named):
        CodebookLinearLayerConfig(**{**fields, **change})
