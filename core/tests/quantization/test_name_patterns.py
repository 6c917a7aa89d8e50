"""Patterns of checkpoints: the same answers as `re` and `fnmatch`, in a bounded number of steps."""

from __future__ import annotations

import fnmatch
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qcore import errors
from qcore.quantization import name_patterns
from qcore.quantization.layer_lists import LayerList, is_listed
from qcore.quantization.methods import read_quantization_config
from qcore.quantization.name_patterns import (
    Globs,
    NamePattern,
    compile_pattern,
    pattern_allowance,
)

ATOMS = ["a", "b", ".", r"\d", "[ab]", "[^a]", "[]a]", r"[\]b-]", r"\.", r"\w", r"\x61", "1", "_"]
ANCHORS = ["^", "$", r"\b", r"\B", r"\A", r"\Z", "", "(?#a)", "{", "a{,}"]
COUNTS = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "*?", "+?", "{2,}", "{0}", "{3}?"]
GROUPS = ["?:", "?=", "?!", "?<=", "?<!", "?P<z>", ""]


def _larger(inner):
    return st.one_of(
        st.builds(str.__add__, inner, inner),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(COUNTS)),
        st.builds("({}{})".format, st.sampled_from(GROUPS), inner),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS + ANCHORS), _larger, max_leaves=8)


@settings(max_examples=800, deadline=None)
@given(PATTERNS, st.lists(st.text("abA.1_\n", max_size=8), max_size=4), st.booleans())
def test_finds_what_re_finds(pattern, names, fold):
    pattern = f"(?i){pattern}" if fold else pattern
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = re.compile(pattern)
        except re.error:
            with pytest.raises(errors.CheckpointError, match="no regular expression"):
                compile_pattern(pattern, "here")
            return
        got = NamePattern(pattern)
    for name in names:
        for how in ("match", "search", "fullmatch"):
            assert getattr(got, how)(name) == bool(getattr(expected, how)(name)), (how, name)


@pytest.mark.parametrize(
    "pattern",
    [
        ".*lm_head",
        r".*mlp\.gate$",
        "^(?!.*(visual|lm_head)).*_proj",
        r"model\.layers\.(?:[0-2]|1\d)\..*(gate|up)_proj",
        r".*\.experts\.\d+\.(w1|w3)",
        r"(?i)MODEL\.layers.{0,4}mlp",
    ],
)
def test_patterns_as_tools_write_them(pattern):
    names = [
        f"{root}layers.{i}.{part}"
        for root in ("model.", "visual.model.")
        for i in (0, 7, 12)
        for part in ("mlp.gate", "mlp.gate_proj", "mlp.experts.3.w1", "self_attn.q_proj")
    ] + ["lm_head", "model.lm_head"]
    got, expected = NamePattern(pattern), re.compile(pattern)
    assert [got.match(n) for n in names] == [bool(expected.match(n)) for n in names]
    assert len({got.match(n) for n in names}) == 2


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab*?[]!-^", max_size=7), max_size=4), st.text("ab*[]!-^", max_size=6))
def test_globs_find_what_fnmatch_finds(entries, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = any(fnmatch.fnmatchcase(name, entry) for entry in entries)
        assert Globs(entries, "here").match(name) == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab.", max_size=5), max_size=4),
    st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5).map(".".join),
)
def test_lists_find_whole_words(entries, name):
    expected = any(f".{e.strip('.')}." in f".{name}." for e in entries if e.strip("."))
    assert is_listed(name, LayerList(entries)) == expected


# -- bounds ------------------------------------------------------------------------------------

# Each makes `re` try exponentially many, or very many, ways on a name of a few dozen characters.
EXPONENTIAL = [
    "(a+)+$",
    "(a|a)*$",
    "(a|ab|b)*c",
    "((a*)*)*b",
    "(a?){30}a{30}$",
    "(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)[^a]$",
    "(?:a|aa|aaa|aaaa)+$",
    "^(?!(a+)+$)b",
    "(?=(a|a)*$)c|d",
    "(?:(?:a{0,8}){0,8}){0,8}b",
    "(a|b)*a(a|b){12}$",
]


@pytest.mark.parametrize("pattern", EXPONENTIAL)
def test_steps_grow_with_the_product_of_the_lengths(pattern):
    looks = pattern.count("?=") + pattern.count("?!")
    with pattern_allowance() as allowance:
        found = NamePattern(pattern)
        nodes = name_patterns._MAX_ALL_NODES - allowance.nodes
        for name in ("a" * 256 + "!", "ab" * 128):
            before = allowance.steps
            found.match(name)
            assert allowance.steps - before <= 4 * (nodes + 1) * len(name) * (1 + looks * len(name))
            assert allowance.steps - before < 10**6


SLOW = "(a|b)*a(a|b){200}$"
NAMES = [
    format(i * 2654435761 % 2**64, "064b").replace("0", "a").replace("1", "b") * 4
    for i in range(400)
]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
GROUP = {"targets": ["Linear"], "weights": INT4}
AO = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
CONFIGS = {
    "dynamic": lambda p: {**GPTQ, "dynamic": {p: {}, f"-:{p}": {}}},
    "targets": lambda p: {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {**GROUP, "targets": [f"re:{p}"]}},
    },
    "ignore": lambda p: {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": GROUP},
        "ignore": [f"re:{p}"],
    },
    "extra_config": lambda p: {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 32,
        "extra_config": {p: {"bits": 8}},
    },
    "fqn_to_config": lambda p: {
        "quant_method": "torchao",
        "quant_type": {
            "default": {"_type": "FqnToConfig", "_data": {"fqn_to_config": {f"re:{p}": AO}}}
        },
    },
}


def ask(method, layer):
    for name in NAMES:
        method.get_quant_method(layer, name)


@pytest.mark.parametrize("where", CONFIGS)
def test_every_list_of_patterns_is_bounded(where, monkeypatch):
    monkeypatch.setattr(name_patterns, "MAX_STEPS", 10**6)
    layer = torch.nn.Linear(1, 1, device="meta")
    for pattern in EXPONENTIAL[:4]:
        method = read_quantization_config(CONFIGS[where](pattern))
        for length in range(1, 250):
            method.get_quant_method(layer, "a" * length + "!")
    method = read_quantization_config(CONFIGS[where](SLOW))
    with pytest.raises(errors.CheckpointError, match="more than 1000000 steps"):
        ask(method, layer)


def test_exclude_modules_are_bounded(monkeypatch):
    config = {"quant_method": "modelopt", "quant_algo": "FP8"}
    layer = torch.nn.Linear(1, 1, device="meta")
    many = [f"*{'a*b' * (1 + i % 40)}*{i}" for i in range(400)]
    method = read_quantization_config({**config, "exclude_modules": [*many, "*lm_head", "x.[0-3]"]})
    assert method.get_quant_method(layer, "model.lm_head") is None
    assert method.get_quant_method(layer, "x.2") is None
    assert method.get_quant_method(layer, "x.4") is not None
    monkeypatch.setattr(name_patterns, "MAX_STEPS", 10**6)
    with pytest.raises(errors.CheckpointError, match="steps"):
        ask(method, layer)


def test_all_patterns_of_a_config_share_one_allowance():
    with pattern_allowance() as allowance:
        one, other = NamePattern("a*b"), NamePattern(".*c")
        one.match("aaa")
        before = allowance.steps
        other.match("aaa")
        assert allowance.steps > before
    alone = NamePattern("a*b")
    before = allowance.steps
    alone.match("aaa")
    assert allowance.steps == before


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(name_patterns, "_MAX_REMEMBERED", 500)
    pattern, expected = NamePattern("(a|b)*a(a|b){9}$"), re.compile("(a|b)*a(a|b){9}$")
    for name in NAMES[:50]:
        assert pattern.match(name[:40]) == bool(expected.match(name[:40]))
    assert pattern._allowance.remembered <= 500 + 50


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?P<a>.)(?P=a)", r"'\(\?P=' is not supported|\(\?P="),
        (r"(.)\1", r"\\1 is not supported"),
        (r"\07", r"\\0 is not supported"),
        ("(?s).", r"'\(\?s\)' is not supported"),
        ("(?i:a)", "is not supported"),
        ("(a)?(?(1)b|c)", "is not supported"),
        ("(?:a{64}){65}", "too long"),
        ("((a{200}){200}){200}", "too long"),
        ("(?:){2000000000}", "too long"),
        ("a" * 3000, "3000 characters"),
        ("(" * 30 + ")" * 30, "nested more than 24 deep"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(pattern, text):
    with pytest.raises(errors.UnsupportedQuantizationError, match=text):
        compile_pattern(pattern, "here")


def test_large_lists_are_refused(monkeypatch):
    monkeypatch.setattr(name_patterns, "_MAX_ALL_NODES", 20_000)
    many = [f"(?:a{{4000}}){i}" for i in range(10)]
    config = {**GPTQ, "dynamic": {pattern: {} for pattern in many}}
    with pytest.raises(errors.UnsupportedQuantizationError, match="whole list, is too long"):
        read_quantization_config(config)
    with pytest.raises(errors.UnsupportedQuantizationError, match="too long"):
        Globs([f"{i}*{'x' * 1000}" for i in range(30)], "here")
    with pytest.raises(errors.UnsupportedQuantizationError, match="2048 are allowed"):
        Globs(["*" * 3000], "here")
    groups = {str(i): GROUP for i in range(1025)}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    with pytest.raises(errors.UnsupportedQuantizationError, match="1024 groups"):
        read_quantization_config(config)
