"""What `triton_specs` declares is what `qcore.triton` has."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest
from qcore import triton
from qcore.errors import ConfigError
from qcore.kernels.base import LinearKernel
from qcore.plugin import Evidence, Platform, Priority
from qcore.triton.specs import triton_specs

HARDWARE = {"mp": 80, "int8": 80, "fp8_block": 89, "nvfp4": 80, "mxfp4": 80, "mxfp8": ("gfx950",)}
SPECS = triton_specs(Platform.CUDA, HARDWARE, evidence=Evidence.EXECUTED)
MODULES = [m.name for m in pkgutil.iter_modules(triton.__path__, "qcore.triton.") if not m.ispkg]


def test_every_class_is_declared():
    classes = {
        name
        for module in map(import_module, MODULES)
        for name in module.__all__
        if inspect.isclass(found := getattr(module, name)) and issubclass(found, LinearKernel)
    }
    assert {spec.name for spec in SPECS} == classes


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_class_is_where_its_spec_says(spec):
    module, _, name = spec.entry.partition(":")
    assert getattr(import_module(module), name).kernel_type == spec.kernel_type


def test_what_differs_is_the_plugin_s():
    by_type = {spec.kernel_type: spec for spec in SPECS}
    assert by_type["fp8_block"].min_capability == 89
    assert by_type["fp8_block"].archs == ()
    assert by_type["mxfp8"].min_capability is None
    assert by_type["mxfp8"].archs == ("gfx950",)
    assert all(spec.priority == Priority.PORTABLE for spec in SPECS)
    (spec,) = triton_specs(
        Platform.ROCM, {"mp": ("gfx942",)}, evidence=Evidence.STAND_IN, priority=7
    )
    assert spec.platforms == (Platform.ROCM,)
    assert (spec.evidence, spec.priority) == (Evidence.STAND_IN, 7)


def test_a_type_without_a_kernel():
    with pytest.raises(ConfigError, match=r"hardware names gguf, .*for mp, int8"):
        triton_specs(Platform.CUDA, {"zzz": 80, "gguf": 80}, evidence=Evidence.EXECUTED)


def test_declaring_imports_no_kernel():
    code = (
        "import sys, qcore.triton.specs as s\n"
        "loaded = {m for m in sys.modules if m.startswith('qcore.triton.')}\n"
        "assert loaded == {s.__name__}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
