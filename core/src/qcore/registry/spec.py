"""`KernelSpec`: all that selection must know of a kernel before its class is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum

from qcore.errors import ConfigError
from qcore.facts.cpu_features import CPU_FEATURES
from qcore.facts.platform import Platform

__all__ = ["Evidence", "KernelSpec", "Numerics", "Priority"]


class Priority(IntEnum):
    """Bands of priority. A kernel may have any integer; these say what the numbers mean."""

    REFERENCE = 0
    """Right, and slow."""
    FALLBACK = 200
    """Made of what torch already has."""
    PORTABLE = 400
    """One source for many devices (Triton, SYCL, plain C++)."""
    VENDOR = 600
    """Written for this vendor's hardware."""
    SPECIALIZED = 800
    """Written for this very generation of the hardware."""
    RUNTIME = 1000
    """Registered by the user's program: it was not put there to be passed over."""


class Numerics(str, Enum):
    """How a kernel's result relates to what the layer's config says."""

    EXACT = "exact"
    """As the config says, up to the rounding of the accumulation and of a dequantized weight to the
    input's dtype."""
    WEIGHT_ONLY = "weight_only"
    """Activations keep their precision even if the config quantizes them: closer, not equal."""
    APPROXIMATE = "approximate"
    """Something is rounded that the config does not round; the user must allow it."""

    def __str__(self) -> str:
        return self.value


class Evidence(str, Enum):
    """What has been done with a kernel; printed beside it."""

    EXECUTED = "executed"
    """Run on the hardware that it is declared for."""
    STAND_IN = "stand-in"
    """Run, but on other hardware or an emulator."""
    COMPILED = "compiled"
    """Compiled, never run."""
    CONTRACT = "contract"
    """Its calls were checked against a stand-in of the vendor's library."""
    UNSTATED = "unstated"
    """Its author does not say."""

    def __str__(self) -> str:
        return self.value


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_BACKEND = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class KernelSpec:
    """A kernel, declared. Nothing of it is imported until selection reaches it.

    Attributes:
        name: the class's name; what users disable and force.
        kernel_type: which layers; a key of `qcore.kernels.KERNEL_TYPES`.
        platforms: on what hardware.
        entry: where the class is, as ``module:Class``.
        priority: higher goes first; see `Priority`.
        backend: the name by which a user asks for the kernels of one library.
        min_capability: least compute capability (80 for sm_80); None for any.
        max_capability: greatest compute capability; None for any.
        archs: the only architectures (``gfx942``, ``sm_90``); empty for any.
        cpu_features: instruction sets that must all be there (`qcore.facts.cpu_features`).
        modules: Python modules that must be installed.
        numerics: see `Numerics`.
        batch_invariant: whether a row's result does not depend on the other rows of the batch.
        evidence: see `Evidence`.
        description: a line for people.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    name: str
    kernel_type: str
    platforms: tuple[Platform, ...]
    entry: str
    priority: int = Priority.VENDOR
    backend: str = "unnamed"
    min_capability: int | None = None
    max_capability: int | None = None
    archs: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    numerics: Numerics = Numerics.EXACT
    batch_invariant: bool = False
    evidence: Evidence = Evidence.UNSTATED
    description: str = ""

    def __post_init__(self) -> None:
        self._convert()
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"KernelSpec.name is {self.name!r}; it must be a class name")
        who = f"KernelSpec {self.name}"
        if not _ENTRY.fullmatch(self.entry):
            raise ConfigError(f"{who}: entry is {self.entry!r}; it must be 'module:Class'")
        if not _BACKEND.fullmatch(self.backend):
            raise ConfigError(
                f"{who}: backend is {self.backend!r}; lower-case letters, digits, '_', '-', '.'"
            )
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise ConfigError(f"{who}: priority is {self.priority!r}; it must be an integer")
        if not self.platforms:
            raise ConfigError(f"{who}: platforms is empty")
        for name in ("min_capability", "max_capability"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 0 <= value < 1000):
                raise ConfigError(f"{who}: {name} is {value!r}; 80 stands for sm_80")
        for feature in self.cpu_features:
            if feature not in CPU_FEATURES:
                raise ConfigError(
                    f"{who}: cpu_features has {feature!r}; known: {', '.join(CPU_FEATURES)}"
                )

    def _convert(self) -> None:
        """Accept lists and plain strings where they can only mean one thing."""
        for name in ("archs", "cpu_features", "modules", "platforms"):
            value = getattr(self, name)
            if isinstance(value, (str, Platform)):
                value = (value,)
            object.__setattr__(self, name, tuple(value))
        try:
            object.__setattr__(self, "platforms", tuple(Platform(p) for p in self.platforms))
            object.__setattr__(self, "numerics", Numerics(self.numerics))
            object.__setattr__(self, "evidence", Evidence(self.evidence))
        except ValueError as error:
            raise ConfigError(f"KernelSpec {self.name}: {error}") from None
