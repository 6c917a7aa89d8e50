"""The conformance kit on the plugin's own kernels, which run on the CPU executor.

All checks for one machine with waves of 64 lanes and e4m3fnuz, and one with waves of 32 and e4m3fn;
for the others, whose matrix instructions have another K or other 8-bit floats, the numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cpu_machine import CpuMachine
from qcore.kernels.base import LinearKernel
from qcore.testing import check_kernel, conformance_configs
from qcore.testing.configs import spread
from qcore_rocm import plugin
from qcore_rocm.kernels.hip_fp8 import HipFP8ScaledMMLinearKernel
from qcore_rocm.kernels.hip_int8 import HipInt8ScaledMMLinearKernel
from qcore_rocm.kernels.hip_w4a16 import HipW4A16LinearKernel

KERNELS = (HipInt8ScaledMMLinearKernel, HipFP8ScaledMMLinearKernel, HipW4A16LinearKernel)
SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}
WHOLLY = ("gfx942", "gfx1201")


@pytest.mark.parametrize("kernel", KERNELS)
def test_conforms(kernel: type[LinearKernel[Any]], on_machine: CpuMachine) -> None:
    spec = SPECS[kernel.__name__]
    if on_machine.arch not in spec.archs:
        pytest.skip(f"{spec.name} is for {', '.join(spec.archs)}")
    here = replace(spec, platforms=("cpu",), archs=())
    if on_machine.arch in WHOLLY:
        assert check_kernel(kernel, spec=here).claimed > 20
        return
    fitting = [c for c in conformance_configs(spec.kernel_type) if kernel.can_implement(c)[0]]
    some = spread(fitting, 12)
    assert check_kernel(kernel, spec=here, configs=some, checks=["check_numerics"]).claimed == 12
