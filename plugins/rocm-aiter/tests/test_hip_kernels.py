"""The conformance kit on the plugin's own kernels, which run on the CPU executor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cpu_machine import CpuMachine
from qcore.kernels.base import LinearKernel
from qcore.testing import check_kernel
from qcore_rocm import plugin
from qcore_rocm.kernels.hip_fp8 import HipFP8ScaledMMLinearKernel
from qcore_rocm.kernels.hip_int8 import HipInt8ScaledMMLinearKernel
from qcore_rocm.kernels.hip_w4a16 import HipW4A16LinearKernel

KERNELS = (HipInt8ScaledMMLinearKernel, HipFP8ScaledMMLinearKernel, HipW4A16LinearKernel)
SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}


@pytest.mark.parametrize("kernel", KERNELS)
def test_conforms(kernel: type[LinearKernel], on_machine: CpuMachine) -> None:
    spec = SPECS[kernel.__name__]
    if on_machine.arch not in spec.archs:
        pytest.skip(f"{spec.name} is for {', '.join(spec.archs)}")
    report = check_kernel(kernel, spec=replace(spec, platforms=("cpu",), archs=()))
    print(report)
    assert report.claimed > 10
