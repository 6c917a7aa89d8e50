"""The conformance kit on the plugin's own kernels, which run on the CPU executor.

All checks of all layers for one machine, with waves of 64 lanes and e4m3fnuz; the numbers of all
layers for one with waves of 32 and e4m3fn; those of some for the others, whose matrix instructions
have another K or other 8-bit floats.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_machine import CpuMachine
from qcore.facts.quant_key import GroupShape, kFp8Dynamic128Sym, kFp8Static128BlockSym
from qcore.kernels.base import LinearKernel
from qcore.layers import Fp8BlockScaledMMLinearLayerConfig, MMLinearLayerConfig
from qcore.testing import check_kernel, conformance_configs
from qcore.testing.configs import spread
from qcore_rocm import plugin
from qcore_rocm.kernels.hip_fp8 import HipFP8ScaledMMLinearKernel
from qcore_rocm.kernels.hip_fp8_block import HipFp8BlockScaledMMKernel
from qcore_rocm.kernels.hip_int8 import HipInt8ScaledMMLinearKernel
from qcore_rocm.kernels.hip_w4a16 import HipW4A16LinearKernel

KERNELS = (
    HipInt8ScaledMMLinearKernel,
    HipFP8ScaledMMLinearKernel,
    HipFp8BlockScaledMMKernel,
    HipW4A16LinearKernel,
)
SPECS = {spec.name: spec for spec in plugin.qcore_kernels()}


def ragged(kernel_type: str) -> list[MMLinearLayerConfig]:
    """Shapes that end within a block of scales, of which the kit has few."""
    if kernel_type != "fp8_block":
        return []
    blocks = [(128, 128), (24, 128), (1, 128)]
    return [
        Fp8BlockScaledMMLinearLayerConfig(
            replace(
                kFp8Static128BlockSym,
                scale=replace(kFp8Static128BlockSym.scale, group_shape=GroupShape(*block)),
            ),
            kFp8Dynamic128Sym,
            shape,
            torch.bfloat16,
            torch.float32,
        )
        for block in blocks
        for shape in ((19, 77), (130, 300))
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_conforms(kernel: type[LinearKernel[Any]], on_machine: CpuMachine) -> None:
    spec = SPECS[kernel.__name__]
    if on_machine.arch not in spec.archs:
        pytest.skip(f"{spec.name} is for {', '.join(spec.archs)}")
    here = replace(spec, platforms=("cpu",), archs=())
    configs = [*conformance_configs(spec.kernel_type), *ragged(spec.kernel_type)]
    fitting = [config for config in configs if kernel.can_implement(config)[0]]
    assert len(fitting) > 10
    if on_machine.arch == "gfx942":
        check_kernel(kernel, spec=here, configs=configs)
    else:
        some = fitting if on_machine.arch == "gfx1201" else spread(fitting, 8)
        check_kernel(kernel, spec=here, configs=some, checks=["check_numerics"])
