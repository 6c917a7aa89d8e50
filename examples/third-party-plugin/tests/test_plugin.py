"""The installed plugin: found, chosen, disabled, asked for by its backend's name."""

import subprocess
import sys

import pytest
import qcore
import torch

MP = qcore.MPLinearLayerConfig(
    (256, 128), (256, 128), qcore.scalar_types.uint4b8, torch.bfloat16, 128, zero_points=False
)
INT8 = qcore.Int8ScaledMMLinearLayerConfig(False, True, True, weight_shape=(128, 256))
OURS = {"mp": "DequantizedMPLinearKernel", "int8": "FloatInt8ScaledMMLinearKernel"}

# Other plugins may be installed beside this one and go first: each choice is of those two only.
LAYERS = pytest.mark.parametrize("config", [MP, INT8], ids=["mp", "int8"])


def verdicts(config, target="cpu"):
    decision = qcore.select(config, target, exhaustive=True)
    return {candidate.name: candidate.verdict() for candidate in decision.candidates}


def test_it_is_found_without_failures():
    registry = qcore.get_registry()
    (record,) = [plugin for plugin in registry.plugins if plugin.name == "acme"]
    assert (record.status, record.distribution) == ("ok", "acme-qcore-kernels")
    assert record.kernels == list(OURS.values())
    assert not [failure for failure in registry.failures if failure.plugin == "acme"]
    assert "acme" in registry.backends()
    assert all(line.ok for name, line in registry.doctor() if name == "acme")


@LAYERS
def test_it_goes_before_the_reference_kernels(config):
    names = list(verdicts(config))
    reference = next(name for name in names if name.startswith("Reference"))
    assert names.index(OURS[config.kernel_type]) < names.index(reference)


@LAYERS
def test_it_is_chosen_by_its_backend_and_runs(config, monkeypatch):
    monkeypatch.setenv("QCORE_LINEAR_BACKEND", "acme")
    decision = qcore.select(config, "cpu")
    assert decision.kernel_name == OURS[config.kernel_type]
    assert decision.chosen.kernel.distribution == "acme-qcore-kernels"


@LAYERS
def test_it_is_left_out_when_disabled(config, monkeypatch):
    name = OURS[config.kernel_type]
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", name)
    assert verdicts(config)[name] == "refused (disabled): named in QCORE_DISABLED_KERNELS"
    assert qcore.select(config, "cpu").kernel_name != name


@LAYERS
def test_it_is_left_out_when_another_backend_is_asked_for(config, monkeypatch):
    monkeypatch.setenv("QCORE_LINEAR_BACKEND", "reference")
    assert "refused (backend)" in verdicts(config)[OURS[config.kernel_type]]
    assert qcore.select(config, "cpu").kernel_name.startswith("Reference")


@LAYERS
def test_it_is_not_for_gpus(config):
    assert "refused (platform)" in verdicts(config, "cuda:sm_90")[OURS[config.kernel_type]]


def test_its_kernels_are_imported_when_they_are_asked_and_not_before():
    code = (
        "import sys, qcore; qcore.get_registry();"
        "assert 'acme_qcore.plugin' in sys.modules;"
        "assert 'acme_qcore.int8' not in sys.modules;"
        "assert 'acme_qcore.mixed_precision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_disabled_plugin_is_not_even_imported():
    code = (
        "import os, sys; os.environ['QCORE_DISABLED_PLUGINS'] = 'acme';"
        "import qcore; registry = qcore.get_registry();"
        "assert [p.status for p in registry.plugins if p.name == 'acme'] == ['disabled'];"
        "assert 'acme_qcore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
