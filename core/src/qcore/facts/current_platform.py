"""`current_platform`: the questions that a vLLM-style kernel asks about "the" platform.

A kernel's ``is_supported`` and ``can_implement`` ask it without an argument. While selection weighs
kernels for a `Target`, the answers are about *that* target, so the same class can be asked about a
machine that is not here; at any other time they are about this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from qcore.facts.platform import Platform
from qcore.facts.target import Target

__all__ = ["DeviceCapability", "current_platform", "weighing"]

_weighed: ContextVar[Target | None] = ContextVar("qcore_weighed_target", default=None)


@contextmanager
def weighing(target: Target) -> Iterator[None]:
    """Let `current_platform` answer for ``target`` in this context."""
    token = _weighed.set(target)
    try:
        yield
    finally:
        _weighed.reset(token)


class DeviceCapability(NamedTuple):
    """A compute capability, as (major, minor)."""

    major: int
    minor: int

    def to_int(self) -> int:
        """``major * 10 + minor``."""
        return self.major * 10 + self.minor


class _CurrentPlatform:
    """See the module. The methods have vLLM's names."""

    @property
    def target(self) -> Target:
        """The target that the answers are about."""
        return _weighed.get() or Target.current()

    @property
    def _enum(self) -> Platform:
        return self.target.platform

    @property
    def device_type(self) -> str:
        """What `torch.device` calls the platform."""
        return self.target.platform.torch_device_type

    def is_cpu(self) -> bool:
        """Whether it is a CPU."""
        return self.target.platform is Platform.CPU

    def is_zen_cpu(self) -> bool:
        """Whether it is a CPU that zentorch is made for: AMD, with AVX-512."""
        return self.is_cpu() and {"amd", "avx512f"} <= self.target.cpu_features

    def is_cuda(self) -> bool:
        """Whether it is CUDA."""
        return self.target.platform is Platform.CUDA

    def is_rocm(self) -> bool:
        """Whether it is ROCm."""
        return self.target.platform is Platform.ROCM

    def is_xpu(self) -> bool:
        """Whether it is an Intel GPU."""
        return self.target.platform is Platform.XPU

    def is_cuda_alike(self) -> bool:
        """Whether it is CUDA or ROCm."""
        return self.is_cuda() or self.is_rocm()

    def get_device_capability(self, device_id: int = 0) -> DeviceCapability | None:
        """The compute capability, or None where there is no such thing."""
        capability = self.target.compute_capability
        return None if capability is None else DeviceCapability(*divmod(capability, 10))

    def has_device_capability(self, capability: int | tuple[int, int], device_id: int = 0) -> bool:
        """Whether the compute capability is at least ``capability`` (90 or (9, 0))."""
        mine = self.target.compute_capability
        if isinstance(capability, tuple):
            capability = capability[0] * 10 + capability[1]
        return mine is not None and mine >= capability

    def is_device_capability(self, capability: int | tuple[int, int], device_id: int = 0) -> bool:
        """Whether the compute capability is ``capability`` (90 or (9, 0))."""
        if isinstance(capability, tuple):
            capability = capability[0] * 10 + capability[1]
        return self.target.compute_capability == capability

    def is_device_capability_family(self, capability: int, device_id: int = 0) -> bool:
        """Whether the major capability is that of ``capability`` (100 for sm_100, sm_103)."""
        mine = self.target.compute_capability
        return mine is not None and mine // 10 == capability // 10

    def is_fp8_fnuz(self) -> bool:
        """Whether 8-bit floats are the fnuz kind (gfx940 ... gfx942)."""
        return bool(self.target.arch and self.target.arch.startswith("gfx94"))


current_platform = _CurrentPlatform()
"""The platform being weighed, or this machine's."""
