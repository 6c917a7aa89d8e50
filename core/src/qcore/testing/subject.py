"""`Subject`: a kernel class under test, and what it declares about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from qcore.errors import ConfigError, TargetError
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.kernels.base import LinearKernel
from qcore.kernels.loading import process_weights
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.discovery import get_registry
from qcore.registry.spec import KernelSpec, Numerics
from qcore.selection.questions import declared_refusal
from qcore.settings import Settings
from qcore.testing.configs import label
from qcore.testing.oracle import Arithmetic, Oracle
from qcore.testing.tensors import make_layer, random_tensors

__all__ = ["Built", "ConformanceError", "Kernel", "Subject", "subject_of"]


class ConformanceError(AssertionError):
    """A kernel does not keep what it promises.

    Attributes:
        kernel: the class's name.
        check: the check that failed.
        config: the layer, in words; "" where the failure is not about one layer.
        problem: what is wrong, with the measured value and the allowed one.
    """

    def __init__(self, kernel: str, check: str, config: str, problem: str) -> None:
        where = f" for {config}" if config else ""
        super().__init__(f"{kernel} fails {check}{where}: {problem}")
        self.kernel, self.check, self.config, self.problem = kernel, check, config, problem


@dataclass(frozen=True)
class Subject:
    """A kernel class under test.

    Attributes:
        kernel_class: the class.
        device: where to run it, as for `torch.device`.
        spec: its declaration; None to look for it in the registry (by entry, name and type), and if
            it is not there, to assume an exact kernel that promises nothing else.
        arithmetic: how it computes, which decides how exact it must be.
        tolerance: for an ``APPROXIMATE`` kernel, and only for one: the error that it may make, as a
            fraction of ``sqrt(sum((a * w)**2))``, which is the order of magnitude of an output.

    Raises:
        ConfigError: an approximate kernel comes without a tolerance, or another one with it; or the
            spec is another kernel's.
    """

    kernel_class: type[LinearKernel[Any]]
    device: str = "cpu"
    spec: KernelSpec | None = None
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.spec is not None and self.spec.name != self.name:
            raise ConfigError(f"the spec is {self.spec.name}'s, the class is {self.name}")
        approximate = self.declared.numerics is Numerics.APPROXIMATE
        if approximate and self.tolerance is None:
            raise ConfigError(f"{self.name} is declared approximate; its tolerance must be given")
        if not approximate and self.tolerance is not None:
            raise ConfigError(
                f"{self.name} is declared {self.declared.numerics}; only an approximate kernel has "
                "a tolerance"
            )

    @property
    def name(self) -> str:
        """The class's name."""
        return self.kernel_class.__name__

    @property
    def kernel_type(self) -> str:
        """Which layers it takes."""
        return self.kernel_class.kernel_type

    @property
    def declared(self) -> KernelSpec:
        """The spec that was given, that of the registry, or one that promises nothing."""
        if self.spec is not None:
            return self.spec
        entry = f"{self.kernel_class.__module__}:{self.name}"
        for kernel in get_registry().kernels(self.kernel_type):
            if kernel.name == self.name and kernel.spec.entry == entry:
                return kernel.spec
        platform = "cpu" if self.device.startswith("cpu") else self.target().platform
        return KernelSpec(self.name, self.kernel_type, (platform,), entry)  # type: ignore[arg-type]

    def target(self) -> Target:
        """The machine that the kernel is run on.

        Raises:
            TargetError: torch has no such device here.
        """
        return Target.current(self.device)

    def unavailable(self) -> str | None:
        """Why the kernel cannot be run here; None where it can."""
        try:
            target = self.target()
        except TargetError as error:
            return str(error)
        refusal = declared_refusal(self.declared, target, Settings(approximate=True), "auto")
        if refusal is not None:
            return f"{refusal[0]}: {refusal[1]}"
        with weighing(target):
            able, reason = self.kernel_class.is_supported(target.compute_capability)
        return None if able else f"support: {reason}"

    def claims(self, config: MMLinearLayerConfig) -> bool:
        """Whether the kernel says that it implements ``config``."""
        return bool(self.can_implement(config)[0])

    def can_implement(self, config: MMLinearLayerConfig) -> Any:
        """What the class answers, asked for this subject's machine (for this one if it is away)."""
        try:
            target = self.target()
        except TargetError:
            target = Target.current()
        with weighing(target):
            return self.kernel_class.can_implement(config)

    def build(self, config: MMLinearLayerConfig, *, seed: int = 0, variant: int = 0) -> Built:
        """A kernel with a processed layer of random weights."""
        tensors = random_tensors(config, seed, variant=variant)
        layer = make_layer(config, tensors, device=self.device)
        kernel = self.kernel_class.from_config(config)
        process_weights(kernel, layer)
        return Built(self, config, tensors, layer, kernel)

    def oracle(self, config: MMLinearLayerConfig, tensors: Mapping[str, torch.Tensor]) -> Oracle:
        """What the layer's results must be."""
        return Oracle(
            config, tensors, self.declared.numerics, self.arithmetic, self.tolerance or 0.0
        )

    def error(
        self, check: str, config: MMLinearLayerConfig | None, problem: str
    ) -> ConformanceError:
        """A failure of this kernel."""
        return ConformanceError(self.name, check, label(config) if config else "", problem)

    @contextmanager
    def guarding(
        self, check: str, config: MMLinearLayerConfig | None, doing: str
    ) -> Iterator[None]:
        """Turn an exception of the kernel into a `ConformanceError`."""
        try:
            yield
        except ConformanceError:
            raise
        except Exception as error:  # a kernel may raise anything
            problem = f"{doing} raised {type(error).__name__}: {error}"
            raise self.error(check, config, problem) from error


@dataclass(frozen=True)
class Built:
    """A kernel and its layer.

    Attributes:
        subject: whose it is.
        config: the layer's config.
        tensors: the canonical tensors that the layer was loaded with, on the CPU.
        layer: the layer, processed.
        kernel: the instance that processed it.
    """

    subject: Subject
    config: MMLinearLayerConfig
    tensors: Mapping[str, torch.Tensor]
    layer: torch.nn.Module
    kernel: LinearKernel[Any]

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Run the layer on tensors that are on its device."""
        return self.kernel.apply_weights(self.layer, x, bias)


Kernel = Subject | type[LinearKernel[Any]]
"""What the checks take: a class, or a `Subject` to say more."""


def subject_of(kernel: Kernel) -> Subject:
    """``kernel`` as a `Subject`."""
    return kernel if isinstance(kernel, Subject) else Subject(kernel)
