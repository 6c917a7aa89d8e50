"""The machines that stand in for an AMD GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for what several test modules share

from cpu_machine import ARCHS, CpuMachine, compiler
from qcore_rocm import launching


@pytest.fixture(scope="session", params=ARCHS)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CpuMachine:
    if compiler() is None:
        pytest.skip("no C++ compiler to build the CPU executor with")
    return CpuMachine(request.param, tmp_path_factory.mktemp("cpu_executor"))


@pytest.fixture
def on_machine(machine: CpuMachine) -> Iterator[CpuMachine]:
    with launching.stand_in(machine):
        yield machine
