from __future__ import annotations

import sys
from types import ModuleType

import pytest
from qcore import errors
from qcore.quantization import (
    QuantizationConfig,
    get_quantization_config,
    quantization_methods,
    read_quantization_config,
)
from qcore.quantization import methods as methods_module
from qcore.quantization.awq import AWQConfig
from qcore.quantization.gptq import GPTQConfig
from qcore.quantization.modelopt import ModelOptConfig


class StubConfig(QuantizationConfig):
    """A plugin's method, which claims checkpoints that say ``claimed_by: stub``."""

    @classmethod
    def get_name(cls):
        return "stub"

    @classmethod
    def from_config(cls, config):
        return cls()

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg, user_quant):
        return "stub" if hf_quant_cfg.get("claimed_by") == "stub" else None

    def get_quant_method(self, layer, prefix):
        return None


@pytest.fixture
def plugin(monkeypatch):
    """Methods that an installed plugin brings."""
    module = ModuleType("stub_methods")
    module.StubConfig = StubConfig
    module.NotAMethod = int
    monkeypatch.setitem(sys.modules, "stub_methods", module)
    entries = {
        "stub": "stub_methods:StubConfig",
        "no-method": "stub_methods:NotAMethod",
        "no-module": "stub_methods_that_are_not_there:X",
    }

    class Registry:
        def quantization_methods(self):
            return entries

    monkeypatch.setattr(methods_module, "get_registry", Registry)


def test_own_methods():
    assert set(quantization_methods()) >= {"gptq", "awq", "compressed-tensors"}
    for name, entry in quantization_methods().items():
        assert entry.count(":") == 1
        assert get_quantization_config(name).get_name() == name
    assert get_quantization_config("compressed_tensors").get_name() == "compressed-tensors"
    for alias, name in (
        ("FP8", "fp8"),
        ("modelopt_fp4", "modelopt"),
        ("modelopt_mxfp8", "modelopt"),
        ("auto_round", "auto-round"),
        ("intel/auto-round", "auto-round"),
    ):
        assert get_quantization_config(alias).get_name() == name


def test_plugins_methods(plugin):
    assert get_quantization_config("stub") is StubConfig
    assert isinstance(read_quantization_config({"quant_method": "stub"}), StubConfig)
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    assert isinstance(read_quantization_config(gptq), GPTQConfig)
    assert isinstance(read_quantization_config({**gptq, "claimed_by": "stub"}), StubConfig)
    with pytest.raises(errors.RegistrationError, match=r"'no-method'.*no child of Quant"):
        get_quantization_config("no-method")
    with pytest.raises(errors.RegistrationError, match=r"'no-module'.*cannot be imported"):
        get_quantization_config("no-module")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bits": 4, "group_size": 128, "desc_act": False}, GPTQConfig),
        ({"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, AWQConfig),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, ModelOptConfig),
    ],
)
def test_files_older_than_the_methods_name(config, expected):
    assert isinstance(read_quantization_config(config), expected)


def test_names_that_are_none():
    with pytest.raises(errors.UnknownQuantizationError, match=r"nearest: gptq.*hook"):
        get_quantization_config("gtpq")
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"'quark' is.*: auto-round"):
        get_quantization_config("quark")
    with pytest.raises(errors.CheckpointError, match="names no quant_method"):
        read_quantization_config({"a": 1})
