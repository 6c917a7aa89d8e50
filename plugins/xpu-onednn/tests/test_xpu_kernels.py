"""The conformance kit on every kernel, on SYCL's CPU device; then by our SYCL kernel alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from qcore.facts.quant_key import kNvfp4Dynamic
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import process_weights
from qcore.kernels.base import LinearKernel
from qcore.layers import MPLinearLayerConfig, MxFp4LinearLayerConfig
from qcore.layers.base import MMLinearLayerConfig
from qcore.plugin import KernelSpec
from qcore.selection import select
from qcore.testing import (
    KernelConformance,
    Subject,
    check_contract,
    check_numerics,
    conformance_configs,
    make_layer,
    random_tensors,
)
from qcore.testing.configs import spread
from qcore.testing.record import evidence
from qcore_xpu import ops, plugin
from qcore_xpu.kernels.fp8 import XPUW8A8FP8LinearKernel, XPUW8A16FP8LinearKernel
from qcore_xpu.kernels.fp8_block import XPUFp8BlockScaledMMKernel
from qcore_xpu.kernels.int8 import XPUInt8ScaledMMLinearKernel
from qcore_xpu.kernels.microscaling import XPUMxFp4LinearKernel, XPUMxFp8LinearKernel
from qcore_xpu.kernels.nvfp4 import XPUNvFp4LinearKernel
from qcore_xpu.kernels.w4 import XPUW4A8IntLinearKernel, XPUwNa16LinearKernel
from qcore_xpu.kernels.w8 import XPUW8A16IntLinearKernel
from xpu_oracle import generator

pytestmark = pytest.mark.runs


@pytest.fixture(autouse=True)
def as_stand_in() -> Iterator[None]:
    """For reports of tests: no run here is one on an Intel GPU."""
    with evidence("stand-in", "SYCL's CPU device: oneDNN where it has the types, else our kernel"):
        yield


def spec_of(name: str) -> KernelSpec:
    return next(spec for spec in plugin.qcore_kernels() if spec.name == name)


def w4_configs(act_type: torch.dtype, out_type: torch.dtype | None) -> list[MPLinearLayerConfig]:
    kinds = (
        (scalar_types.uint4b8, False),
        (scalar_types.uint4, True),
        (scalar_types.int4, False),
    )
    shapes = ((256, 128), (200, 72), (8, 8))
    groups = (32, 64, 128, -1)
    rows = list(product(kinds, shapes, groups, (False, True)))
    return [
        MPLinearLayerConfig((K, N), (K, N), kind, act_type, group, zeros, g_idx, out_type)
        for (kind, zeros), (K, N), group, g_idx in rows
        if not g_idx or group == -1 or K % group == 0
    ]


class TestXPUwNa16LinearKernel(KernelConformance):
    kernel_class = XPUwNa16LinearKernel
    spec = spec_of("XPUwNa16LinearKernel")


class TestXPUW4A8IntLinearKernel(KernelConformance):
    kernel_class = XPUW4A8IntLinearKernel
    spec = spec_of("XPUW4A8IntLinearKernel")
    configs = (
        *spread(w4_configs(torch.int8, torch.bfloat16), 12),
        *spread(w4_configs(torch.int8, torch.float16), 5),
        *spread(w4_configs(torch.int8, torch.float32), 5),
        *spread(w4_configs(torch.bfloat16, None), 2),
    )


class TestXPUW8A16IntLinearKernel(KernelConformance):
    kernel_class = XPUW8A16IntLinearKernel
    spec = spec_of("XPUW8A16IntLinearKernel")


class TestXPUInt8ScaledMMLinearKernel(KernelConformance):
    kernel_class = XPUInt8ScaledMMLinearKernel
    configs = tuple(spread(conformance_configs("int8"), 36))  # oneDNN's reference is slow
    spec = spec_of("XPUInt8ScaledMMLinearKernel")


class TestXPUW8A8FP8LinearKernel(KernelConformance):
    kernel_class = XPUW8A8FP8LinearKernel
    spec = spec_of("XPUW8A8FP8LinearKernel")


class TestXPUW8A16FP8LinearKernel(KernelConformance):
    kernel_class = XPUW8A16FP8LinearKernel
    spec = spec_of("XPUW8A16FP8LinearKernel")


class TestXPUFp8BlockScaledMMKernel(KernelConformance):
    kernel_class = XPUFp8BlockScaledMMKernel
    spec = spec_of("XPUFp8BlockScaledMMKernel")


class TestXPUMxFp8LinearKernel(KernelConformance):
    kernel_class = XPUMxFp8LinearKernel
    spec = spec_of("XPUMxFp8LinearKernel")


class TestXPUMxFp4LinearKernel(KernelConformance):
    kernel_class = XPUMxFp4LinearKernel
    spec = spec_of("XPUMxFp4LinearKernel")


class TestXPUNvFp4LinearKernel(KernelConformance):
    kernel_class = XPUNvFp4LinearKernel
    spec = spec_of("XPUNvFp4LinearKernel")


ALL = [
    value.kernel_class
    for name, value in list(globals().items())
    if name.startswith("TestXPU") and isinstance(value, type)
]


def by_sycl() -> Iterator[tuple[type, MMLinearLayerConfig]]:
    for kernel in ALL:
        configs = [*conformance_configs(kernel.kernel_type), *w4_configs(torch.int8, torch.float16)]
        fitting = [
            c
            for c in configs
            if c.kernel_type == kernel.kernel_type and kernel.can_implement(c)[0]
            and c.in_features is not None
        ]  # fmt: skip
        for config in spread(fitting, 6):
            yield kernel, config


@pytest.mark.parametrize(
    ("kernel", "config"), list(by_sycl()), ids=lambda value: getattr(value, "__name__", "")
)
def test_by_our_kernel_alone(kernel: type, config: MMLinearLayerConfig) -> None:
    subject = Subject(kernel, "cpu", spec_of(kernel.__name__))
    what = "SYCL's CPU device: our kernel, compiled at run time"
    with ops.using("sycl"), evidence("stand-in", what):
        check_contract(subject, config)
        check_numerics(subject, config)
        assert ops.last_implementation() in ("sycl", "nothing to do")


@pytest.mark.parametrize("kernel_class", [XPUwNa16LinearKernel, XPUW8A16IntLinearKernel])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("zeros", [False, True])
def test_activation_order(
    zeros: bool, equal: bool, kernel_class: type[LinearKernel[MPLinearLayerConfig]]
) -> None:
    """Inputs are put into the order of their groups, if these are equal, as those of GPTQ are.

    Files may assign inputs to groups as they like; each input then has a scale of its own.
    """
    kind = scalar_types.uint4 if zeros else scalar_types.uint4b8
    config = MPLinearLayerConfig(
        (128, 24), (128, 24), kind, torch.float32, 32, zeros, has_g_idx=True
    )
    tensors = dict(random_tensors(config))
    groups = (
        torch.arange(128) // 32 if equal else torch.randint(0, 4, (128,), generator=generator(5))
    )
    order = torch.randperm(128, generator=generator(3))
    tensors["weight_g_idx"] = groups[order].to(torch.int32)
    layer = make_layer(config, tensors)
    kernel = kernel_class(config)
    process_weights(kernel, layer)
    shifts = torch.arange(0, 32, 4)
    codes = ((tensors["weight_packed"][..., None] >> shifts) & 15).reshape(24, 128)
    scale = tensors["weight_scale"].double()
    zero = torch.full_like(scale, 8)
    if zeros:
        words = tensors["weight_zero_point"]  # [N / 8, G]
        zero = ((words[:, None] >> shifts[None, :, None]) & 15).reshape(24, 4).double()
    group = tensors["weight_g_idx"].long()
    weight = (codes.double() - zero[:, group]) * scale[:, group]
    x = torch.randn(3, 128, generator=generator(4))
    assert (getattr(layer, "weight_g_idx", None) is not None) is equal
    out = kernel.apply_weights(layer, x)
    torch.testing.assert_close(out.double(), x.double() @ weight.t(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            MPLinearLayerConfig((64, 8), (64, 8), scalar_types.uint8b128, torch.float16, 32, False),
            "uint8b128 weights are not implemented",
        ),
        (
            MPLinearLayerConfig((60, 8), (60, 8), scalar_types.uint4b8, torch.float16, 32, False),
            "K=60; multiples of 8 only",
        ),
        (
            MPLinearLayerConfig((64, 9), (64, 9), scalar_types.uint4, torch.float16, 32, True),
            "N=9 with zero points",
        ),
        (
            MPLinearLayerConfig((64, 8), (64, 8), scalar_types.uint4b8, torch.int8, 32, False),
            "int8 activations are not implemented",
        ),
        (MxFp4LinearLayerConfig((8, 64), kNvfp4Dynamic), "MXFP4, MXFP8 and as they are"),
    ],
)
def test_refusals_say_why(config: MMLinearLayerConfig, why: str) -> None:
    kernel = XPUwNa16LinearKernel if config.kernel_type == "mp" else XPUMxFp4LinearKernel
    able, reason = kernel.can_implement(config)  # type: ignore[arg-type]
    assert not able
    assert why in str(reason)


def test_refusals_of_bytes_say_why() -> None:
    config = MPLinearLayerConfig((64, 8), (64, 8), scalar_types.uint8, torch.int8, 32, True)
    assert XPUW8A16IntLinearKernel.can_implement(config) == (
        False,
        "uint8 weights are not implemented: without their zero points they need 9 bits; int8 "
        "activations are not implemented",
    )


def test_four_bits_stay_packed() -> None:
    """The kernel of bytes is behind, for shapes that packed words do not have."""
    for K, name in ((64, "XPUwNa16LinearKernel"), (60, "XPUW8A16IntLinearKernel")):
        config = MPLinearLayerConfig((K, 8), (K, 8), scalar_types.uint4b8, torch.float16, 32, False)
        chosen = select(config, "xpu").chosen
        assert chosen is not None
        assert chosen.name == name
