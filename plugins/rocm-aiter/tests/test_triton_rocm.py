"""Triton's kernels on ROCm: every launch compiled to the end for each GPU; run in the interpreter.

The source and the program that compiles it are shared with qcore-cuda's tests (`triton_aot.py`).
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from qcore.testing import check_kernel, conformance_configs
from qcore.testing.configs import spread
from qcore_rocm import plugin

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
pytest.importorskip("triton")

PROGRAM = Path(__file__).parents[2] / "cuda-cutlass" / "tests" / "triton_aot.py"
SPECS = {spec.name: spec for spec in plugin.qcore_kernels() if spec.backend == "triton"}
MATRIX = {"gfx90a": "v_mfma", "gfx942": "v_mfma", "gfx950": "v_mfma", "gfx1201": "v_wmma"}


def launches(arch: str) -> list[dict[str, Any]]:
    """What `triton_aot.py` prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), f"hip:{arch}"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiling() -> Iterator[dict[str, Future[list[dict[str, Any]]]]]:
    """All GPUs' launches, two at a time."""
    if not PROGRAM.is_file():
        pytest.skip("the repository's qcore-cuda is not beside this")
    with ThreadPoolExecutor(2) as pool:
        yield {arch: pool.submit(launches, arch) for arch in MATRIX}


@pytest.mark.parametrize("arch", MATRIX)
def test_compiles(arch: str, compiling: dict[str, Future[list[dict[str, Any]]]]) -> None:
    found = compiling[arch].result()
    assert not [line for line in found if "error" in line]
    kinds = {line["launch"].split()[0].removesuffix("_block") for line in found}
    assert kinds >= {"int8", "int4", "e2m1", "e4m3"}
    assert ("fp8" in kinds) is (arch == "gfx950")
    matrix = [MATRIX[arch]]
    for line in found:
        assert line["spills"] == 0, line
        assert line["mma"] in ([], matrix), line
        assert line["mma"] or line["kernel"] != "_packed_kernel", line
    with_products = {line["kernel"] for line in found if line["mma"]}
    expected = {"_packed_kernel", "_int8_kernel"}  # a quantizer is called _int8_kernel too
    assert with_products == expected | ({"_fp8_block_kernel"} if arch == "gfx950" else set())


@pytest.fixture
def interpreter() -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    source = inspect.getsource(import_module("triton.runtime.interpreter"))
    numpy = import_module("numpy")
    if "int(self.handle.data)" in source and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        pytest.skip("the interpreter of this triton needs numpy below 2.4")


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("name", SPECS)
def test_runs(name: str) -> None:
    """A few layers of each kind, on CPU tensors; bfloat16 is made float32 there."""
    spec = SPECS[name]
    kernel = getattr(import_module(spec.entry.partition(":")[0]), name)
    fitting = [c for c in conformance_configs(spec.kernel_type) if kernel.can_implement(c)[0]]
    here = replace(spec, platforms=("cpu",), archs=())
    checks = ("check_numerics", "check_packing")
    report = check_kernel(kernel, spec=here, configs=spread(fitting, 3), checks=checks)
    assert report.claimed == 3


def test_every_module_is_there() -> None:
    """A declaration names a class that exists."""
    for spec in SPECS.values():
        module, _, name = spec.entry.partition(":")
        assert importlib.util.find_spec(module) is not None, spec.entry
        assert hasattr(import_module(module), name)
