"""What a stranger's JSON may hold, and how its values are shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qcore.errors import QcoreError
from qcore.quantization.json_text import parse_json, shown
from qcore.quantization.methods import quantization_methods, read_quantization_config

NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20), st.floats(), st.sampled_from([2**31, 2**63, -1, 0, 1])
)
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_plain_values_are_read_as_they_are(value):
    raw = json.dumps(value).encode()
    assert repr(parse_json(raw)) == repr(json.loads(raw))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 80 + b"]" * 80, "nested too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deeply"),
        (b"1" * 10_000_000, "an integer of 10000000 digits"),
        (b"1." + b"1" * 10_000_000, "a number of 10000002 digits"),
        (b'"\\ud800"', r"with the character '\\ud800'"),
        (b'{"\\u001b[2J": 1}', r"with the character '\\x1b'"),
        (b'["a\\u0000"]', r"with the character '\\x00'"),
    ],
)
def test_what_no_config_has(raw, text):
    with pytest.raises(ValueError, match=text) as caught:
        parse_json(raw)
    assert len(str(caught.value)) < 200


def test_a_name_that_is_there_twice():
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="twice"):
        parse_json(b'{"a": 1, "a": 2}', unique=True)


def test_shown_is_short_whatever_the_value_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    try:
        for value in (deep, "x" * 10**6, ["x" * 10**6] * 100, {"x" * 10**6: 1}, 10**39):
            assert len(shown(value)) <= 160
    finally:
        while deep:
            deep = deep.pop()
    assert shown("gptq") == "'gptq'"
    assert shown([1, -1]) == "[1, -1]"


FIELDS = [
    *("bits", "group_size", "sym", "desc_act", "lm_head", "dynamic", "checkpoint_format", "w_bit"),
    *("meta", "zero_point", "version", "modules_to_not_convert", "format", "config_groups"),
    *("ignore", "kv_cache_scheme", "sparsity_config", "activation_scheme", "weight_block_size"),
    *("ignored_layers", "scale_fmt", "quant_algo", "exclude_modules", "quantization", "producer"),
    *("quantized_layers", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "quant_type"),
    *("quant_config", "skip_modules", "packing_format", "extra_config", "block_name_to_quantize"),
    *("activation_scale_ub", "fmt", "data_type", "act_bits", "llm_int8_skip_modules"),
]
CONFIGS = st.dictionaries(st.sampled_from(FIELDS), VALUES | st.sampled_from([4, 32, True, "int"]))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*sorted(quantization_methods()), None]), CONFIGS)
def test_any_config_is_read_or_refused(method, config):
    if method is not None:
        config["quant_method"] = method
    try:
        said = read_quantization_config(config).describe()
    except QcoreError as error:
        said = str(error)
    assert len(said) < 2000
