"""docs/hardware.md: labels come from reports, and no kernel declares more than a report says."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from qcore.facts.target import Target
from qcore.plugin import Evidence, KernelSpec, Platform

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
try:
    reports = importlib.import_module("evidence_reports")
    page = importlib.import_module("hardware_page")
    light = importlib.import_module("light_specs")
finally:
    sys.path.remove(str(ROOT / "docs"))

KERNELS = light.declared_kernels()

WITHOUT_REPORT = {
    "CutlassNvFp4LinearKernel",  # compiled; its test, with the built library, notes that
    "ZentorchInt8ScaledMMLinearKernel",  # needs zentorch, and AVX-512
    "ZentorchWNA16LinearKernel",
}
"""Kernels whose label no committed report supports yet; a kernel that has one leaves this set."""


def spec(evidence="executed", platforms=("cuda",), name="K"):
    return KernelSpec(name, "fp8", platforms, "m:K", evidence=evidence)


def run(how=None, target="cuda:sm_90", ok=True, kernel="K"):
    where = Target.parse(target) if target else None
    return reports.Run(
        kernel, Evidence(how) if how else None, "somewhere", where, ok, 3, 0.5, "tests/x.json"
    )


def test_every_label_has_a_report_behind_it():
    lacking = {k.name for k in KERNELS if not page.backed(k.spec, reports.runs_of())}
    assert lacking == WITHOUT_REPORT


def test_every_plugin_of_the_repository_is_read():
    folders = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    assert {folder.name for folder in light.plugin_folders()} == folders | {"core"}
    assert {"qcore", "qcore-cpu", "qcore-cuda", "qcore-flashinfer"} <= {
        k.distribution for k in KERNELS
    }


def test_reading_declarations_imports_no_library():
    """In a fresh interpreter, from the source folders alone."""
    code = (
        "import sys; sys.path.insert(0, 'docs'); import light_specs as specs\n"
        "specs.declared_kernels()\n"
        "print([m for m in ('flashinfer', 'triton', 'aiter', 'deep_gemm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "core" / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("runs", "at", "word"),
    [
        ([], "cuda:sm_90", "no report"),
        ([run()], "cuda:sm_90", "executed"),
        ([run()], "cuda:sm_100", "stand-in"),
        ([run(kernel="other")], "cuda:sm_90", "no report"),
        ([run(ok=False)], "cuda:sm_90", "fails"),
        ([run(ok=False)], "cuda:sm_100", "no report"),
        ([run(target="rocm:gfx942")], "cuda:sm_90", "stand-in"),
        ([run("contract", "")], "cuda:sm_100", "contract-tested"),
        ([run("contract", ""), run()], "cuda:sm_90", "executed"),
        ([run("compiled", "cuda:sm_100")], "cuda:sm_100", "compiled"),
        ([run("compiled", "cuda:sm_100")], "cuda:sm_120", "no report"),
        ([run("compiled", "cuda:sm_100"), run("contract", "")], "cuda:sm_100", "compiled"),
        ([run(target="cpu")], "cuda:sm_90", "stand-in"),
        ([run()], "rocm:gfx942", ""),
    ],
)
def test_what_a_cell_says(runs, at, word):
    assert page.cell(spec(), at, runs) == word


def test_a_contract_test_without_words_is_no_more_than_that():
    assert page.cell(spec("contract"), "cuda:sm_90", [run(target="cpu")]) == "contract-tested"


def test_a_cpu_is_a_cpu():
    ran = [run(target="cpu:zen4")]
    assert page.cell(spec(platforms=("cpu",)), "cpu", ran) == "executed"


@pytest.mark.parametrize(
    ("declared", "runs", "state"),
    [
        ("executed", [run()], "passes"),
        ("executed", [run("contract", "")], "no report of executed"),
        ("stand-in", [run()], "passes"),
        ("compiled", [run("contract", "")], "no report of compiled"),
        ("contract", [run("contract", "")], "passes"),
        ("executed", [run(ok=False)], "fails: somewhere"),
        ("executed", [], "no report"),
        ("unstated", [run()], "passes"),
    ],
)
def test_the_state_of_a_label(declared, runs, state):
    assert page.state(spec(declared), runs) == state


def test_a_report_of_another_format_is_refused():
    with pytest.raises(ValueError, match="format is 2"):
        reports.runs_of_record({"format": 2, "runs": []}, "x.json")


def test_a_gpu_report_without_the_kits_reports_says_nothing():
    assert reports.runs_of_gpu_report({"device": "NVIDIA H200", "results": []}, "x.json") == []


def test_targets_of_the_page_parse():
    for target in page.TARGETS:
        assert Target.parse(target).platform in tuple(Platform)
