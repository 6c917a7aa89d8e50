import pytest
from qcore.errors import ConfigError
from qcore.quantize import SCHEME_NAMES, QuantizeScheme
from qcore.quantize.config_groups import config_group


@pytest.mark.parametrize("text", SCHEME_NAMES)
def test_text_is_read_and_written(text):
    assert str(QuantizeScheme.parse(text)) == text


@pytest.mark.parametrize(
    ("alias", "scheme"),
    [
        ("int4", "int4-g128"),
        ("W4A16", "int4-g128"),
        ("int4-asym", "int4-asym-g128"),
        ("int8-weight-only", "int8-channel"),
        ("w8a16", "int8-channel"),
        ("w8a8", "int8"),
    ],
)
def test_aliases(alias, scheme):
    assert str(QuantizeScheme.parse(alias)) == scheme


@pytest.mark.parametrize(
    "text",
    ["", "int3-g128", "int4-g0", "int4-128", "int4-g128-asym", "fp8-g32", "int4-g4", "int40-g8"],
)
def test_other_text_is_refused_with_examples_or_the_limit(text):
    with pytest.raises(ConfigError, match=r"for instance: int4-g128|8 inputs or more"):
        QuantizeScheme.parse(text)


def test_groups_that_do_not_divide_are_refused_with_those_that_do():
    refusal = QuantizeScheme.parse("int4-g128").refusal(96)
    assert refusal == "K=96 is no multiple of the group of 128; groups of 32, 16, 8 would fit"
    assert QuantizeScheme.parse("int4-g128").refusal(97).endswith("no size fits")
    assert QuantizeScheme.parse("int4-channel").refusal(97) is None


def test_the_config_group_has_every_field_of_compressed_tensors():
    group = config_group(QuantizeScheme.parse("int4-g128"), ["Linear"], searched=False)
    assert group == {
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": 128,
            "num_bits": 4,
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
            "scale_dtype": None,
            "strategy": "group",
            "symmetric": True,
            "type": "int",
            "zp_dtype": None,
        },
    }


def test_int8_quantizes_activations_for_each_token():
    group = config_group(QuantizeScheme.parse("int8"), ["Linear"], searched=True)
    assert group["format"] == "int-quantized"
    inputs = group["input_activations"]
    assert (inputs["strategy"], inputs["dynamic"], inputs["num_bits"]) == ("token", True, 8)
    assert group["weights"]["strategy"] == "channel"
