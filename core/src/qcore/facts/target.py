"""`Target`: the machine that a kernel is chosen for, which need not be this one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from qcore.errors import TargetError
from qcore.facts.cpu_features import CPU_FEATURES, CPU_LEVELS, cpu_vendor, current_cpu_features
from qcore.facts.platform import Platform

__all__ = ["TARGET_EXAMPLES", "Target"]

TARGET_EXAMPLES = (
    "cpu",
    "cpu:avx2",
    "cpu:avx512_vnni",
    "cpu:zen4",
    "cuda:sm_75",
    "cuda:sm_80",
    "cuda:sm_89",
    "cuda:sm_90",
    "cuda:sm_100",
    "cuda:sm_120",
    "rocm:gfx90a",
    "rocm:gfx942",
    "rocm:gfx950",
    "rocm:gfx1201",
    "xpu",
)
"""Targets in use; `Target.parse` reads others of the same form."""

_SM = re.compile(r"(?:sm_?|compute_?)?(\d{2,3})[af]?$|(\d{1,2})\.(\d)[af]?$")
_GFX = re.compile(r"gfx(\d{1,2})([0-9])([0-9a-f])$")


@dataclass(frozen=True)
class Target:
    """A machine to choose kernels for.

    Attributes:
        platform: whose hardware.
        compute_capability: ``major * 10 + minor`` on CUDA (90 is sm_90) and ROCm (94 is gfx942).
        arch: the name of the architecture as its compiler spells it (``sm_90``, ``gfx942``).
        cpu_features: instruction sets and vendor, on a CPU (`qcore.facts.cpu_features`).
        device_name: what the hardware calls itself, where it is known.
        is_current: read off this machine, so that installed packages can be asked about too.
    """

    platform: Platform
    compute_capability: int | None = None
    arch: str | None = None
    cpu_features: frozenset[str] = frozenset()
    device_name: str | None = field(default=None, compare=False)
    is_current: bool = False

    # -- from text ---------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """The target that ``text`` describes.

        Args:
            text: ``cpu[:feature[+feature]]``, ``cuda:sm_NN``, ``rocm:gfxNNN``, ``xpu``, or
                ``current`` for this machine.

        Raises:
            TargetError: the text has another form; the message lists examples.
        """
        if isinstance(text, Target):
            return text
        name, _, detail = text.strip().lower().partition(":")
        if name in ("current", "here") and not detail:
            return cls.current()
        try:
            platform = Platform(name)
        except ValueError:
            raise _unreadable(text, f"no platform is called {name!r}") from None
        if platform is Platform.CPU:
            return cls._parse_cpu(text, detail)
        if platform is Platform.CUDA:
            return cls._parse_cuda(text, detail)
        if platform is Platform.ROCM:
            return cls._parse_rocm(text, detail)
        if detail:
            raise _unreadable(text, f"{name} takes nothing after the colon")
        return cls(platform)

    @classmethod
    def _parse_cpu(cls, text: str, detail: str) -> Target:
        features: set[str] = set()
        for part in filter(None, re.split(r"[+,]", detail)):
            if part in CPU_LEVELS:
                features.update(CPU_LEVELS[part])
            elif part in CPU_FEATURES:
                features.add(part)
            else:
                known = ", ".join(sorted({*CPU_LEVELS, *CPU_FEATURES}))
                raise _unreadable(text, f"no CPU feature is called {part!r}; known: {known}")
        return cls(Platform.CPU, cpu_features=frozenset(features))

    @classmethod
    def _parse_cuda(cls, text: str, detail: str) -> Target:
        match = _SM.match(detail)
        if not match:
            raise _unreadable(text, "after 'cuda:' comes an architecture such as sm_90")
        capability = int(match[1]) if match[1] else int(match[2]) * 10 + int(match[3])
        return cls(Platform.CUDA, capability, f"sm_{capability}")

    @classmethod
    def _parse_rocm(cls, text: str, detail: str) -> Target:
        match = _GFX.match(detail)
        if not match:
            raise _unreadable(text, "after 'rocm:' comes an architecture such as gfx942")
        return cls(Platform.ROCM, int(match[1]) * 10 + int(match[2]), detail)

    # -- this machine ------------------------------------------------------------------------

    @classmethod
    def current(cls, device: str | torch.device | None = None) -> Target:
        """This machine, or one device of it.

        Args:
            device: as for `torch.device`; by default the accelerator if torch has one, else the
                CPU.

        Raises:
            TargetError: torch has no such device here.
        """
        return _current(None if device is None else str(torch.device(device)))

    # -- questions ---------------------------------------------------------------------------

    @property
    def torch_device(self) -> torch.device:
        """The kind of `torch.device` whose tensors a kernel for this target takes."""
        return torch.device(self.platform.torch_device_type)

    def has(self, feature: str) -> bool:
        """Whether the CPU has ``feature``."""
        return feature in self.cpu_features

    def __str__(self) -> str:
        if self.arch:
            return f"{self.platform}:{self.arch}"
        if self.platform is Platform.CPU and self.cpu_features:
            return f"cpu:{_cpu_level(self.cpu_features)}"
        return str(self.platform)

    def describe(self) -> str:
        """One line for a person: the target, its name and, for a CPU, its features."""
        words = [str(self)]
        if self.device_name:
            words.append(f"({self.device_name})")
        if self.cpu_features:
            words.append("with " + ", ".join(sorted(self.cpu_features)))
        return " ".join(words)


def _unreadable(text: str, why: str) -> TargetError:
    return TargetError(
        f"target {text!r} cannot be read: {why}. Examples: {', '.join(TARGET_EXAMPLES)}"
    )


def _cpu_level(features: frozenset[str]) -> str:
    """The shortest text that `Target.parse` turns into (nearly) these features."""
    fitting = [name for name, implied in CPU_LEVELS.items() if set(implied) <= features]
    if not fitting:
        return "+".join(sorted(features))
    best = max(fitting, key=lambda name: len(CPU_LEVELS[name]))
    extra = sorted(features - set(CPU_LEVELS[best]))
    return "+".join([best, *extra])


@lru_cache(maxsize=16)
def _current(device: str | None) -> Target:
    kind = torch.device(device).type if device is not None else _default_device_type()
    if kind == "cuda":
        return _current_gpu(device)
    if kind == "xpu":
        if not (hasattr(torch, "xpu") and torch.xpu.is_available()):
            raise TargetError(f"device {device!r}: torch sees no Intel GPU here")
        return Target(Platform.XPU, device_name=torch.xpu.get_device_name(), is_current=True)
    if kind == "cpu":
        return Target(
            Platform.CPU,
            cpu_features=current_cpu_features(),
            device_name=_cpu_name(),
            is_current=True,
        )
    return Target(Platform.OOT, device_name=kind, is_current=True)


def _default_device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu"
    return "cpu"


def _current_gpu(device: str | None) -> Target:
    if not torch.cuda.is_available():
        build = torch.version.cuda or torch.version.hip
        why = "torch sees no GPU or driver" if build else "this torch is a CPU build"
        raise TargetError(f"device {device!r}: {why}")
    index = torch.device(device).index if device is not None else None
    properties = torch.cuda.get_device_properties(0 if index is None else index)
    capability = properties.major * 10 + properties.minor
    if torch.version.hip:
        arch = str(getattr(properties, "gcnArchName", "")).split(":")[0] or None
        return Target(Platform.ROCM, capability, arch, device_name=properties.name, is_current=True)
    return Target(
        Platform.CUDA, capability, f"sm_{capability}", device_name=properties.name, is_current=True
    )


def _cpu_name() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return cpu_vendor() or None
