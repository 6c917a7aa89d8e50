"""What the plugin says of itself, for machines that are not here; nothing is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.plugin import Evidence, Platform
from qcore.selection import select
from qcore.testing import conformance_configs
from qcore_xpu import library, plugin
from qcore_xpu.kernels.w4 import XPUwNa16LinearKernel

SPECS = plugin.qcore_kernels()
TYPES = sorted({spec.kernel_type for spec in SPECS})


def run(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != library.STAND_IN}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_declaring_imports_no_vendor_library_and_no_kernel() -> None:
    out = run(
        "import sys, qcore_xpu.plugin as p\n"
        "p.qcore_plugin(); p.qcore_kernels()\n"
        "loaded = [m for m in sys.modules if m.startswith('qcore_xpu.')]\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(loaded, [n for n in ('libsycl', 'libdnnl', 'qcore_xpu.so') if n in maps])"
    )
    assert out.strip() == "['qcore_xpu.plugin'] []"


def test_importing_a_kernel_loads_no_vendor_library() -> None:
    out = run(
        "import qcore_xpu.kernels.w4, qcore_xpu.ops\n"
        "maps = open('/proc/self/maps').read()\n"
        "print([n for n in ('libsycl', 'libdnnl', 'qcore_xpu.so') if n in maps])"
    )
    assert out.strip() == "[]"


@pytest.mark.parametrize("kernel_type", TYPES)
def test_every_kernel_is_chosen_for_some_layer_on_xpu(kernel_type: str) -> None:
    chosen = set()
    for config in conformance_configs(kernel_type):
        decision = select(config, "xpu")
        if decision.chosen is not None:
            chosen.add(decision.chosen.name)
    assert {spec.name for spec in SPECS if spec.kernel_type == kernel_type} <= chosen


def test_only_a_stand_in_was_run() -> None:
    assert {spec.evidence for spec in SPECS} == {Evidence.STAND_IN}


def test_a_cpu_is_offered_them_only_if_asked() -> None:
    code = (
        "from qcore_xpu import plugin; print([str(p) for p in plugin.qcore_kernels()[0].platforms])"
    )
    assert run(code).strip() == "['xpu']"
    assert run(code, QCORE_XPU_STAND_IN="1").strip() == "['xpu', 'cpu']"
    chosen = (
        "import qcore, torch, json\n"
        "from qcore import scalar_types as s\n"
        "kn = (256, 64)\n"
        "c = qcore.MPLinearLayerConfig(kn, kn, s.uint4b8, torch.bfloat16, 64, False)\n"
        "print(json.dumps([qcore.select(c, t).chosen.name for t in ('cpu', 'cpu:avx512_vnni')]))"
    )
    assert not any("XPU" in name for name in json.loads(run(chosen)))
    assert Platform.CPU in SPECS[0].platforms  # in these tests


def test_is_supported_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.STAND_IN)
    for target in ("cpu", "cuda:sm_90", "rocm:gfx942"):
        with weighing(Target.parse(target)):
            able, reason = XPUwNa16LinearKernel.is_supported()
        assert not able
        assert "is for Intel GPUs" in str(reason)
    with weighing(Target.parse("xpu")):
        assert XPUwNa16LinearKernel.is_supported() == (True, None)


def test_is_supported_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", Path("/nowhere/qcore_xpu.so"))
    monkeypatch.setattr(library, "_loaded", False)
    library.unusable_here.cache_clear()
    try:
        with weighing(Target(Platform.XPU, is_current=True)):
            able, reason = XPUwNa16LinearKernel.is_supported()
        assert not able
        assert "without its compiled library" in str(reason)
        (line,) = plugin.qcore_doctor()
        assert not line.ok
        assert "without its compiled library" in line.text
    finally:
        library.unusable_here.cache_clear()


@pytest.mark.runs
def test_doctor_says_what_there_is() -> None:
    (line,) = plugin.qcore_doctor()
    assert "oneDNN 3." in line.text
    assert "cpu: " in line.text
    assert line.ok == torch.xpu.is_available()
