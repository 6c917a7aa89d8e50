"""`RegisteredKernel`: a spec, whose it is, and its class once somebody needs it."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

from qcore.errors import RegistrationError
from qcore.kernels.base import LinearKernel
from qcore.kernels.composite import CompositeLinearKernel
from qcore.kernels.types import KERNEL_TYPES
from qcore.registry.spec import KernelSpec

__all__ = ["KernelImportError", "RegisteredKernel", "check_kernel_class"]


class KernelImportError(RegistrationError):
    """A declared kernel's class cannot be imported, or is no kernel.

    Attributes:
        details: the traceback, as text.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class RegisteredKernel:
    """A kernel in the registry.

    Args:
        spec: what is declared.
        plugin: name of the plugin, or ``runtime``.
        distribution: what was installed to bring it, for people and for breaking ties.
        kernel_class: the class, where it is known already.
    """

    __slots__ = ("_class", "_error", "distribution", "plugin", "spec")

    def __init__(
        self,
        spec: KernelSpec,
        plugin: str,
        distribution: str,
        kernel_class: type[LinearKernel[Any]] | None = None,
    ) -> None:
        self.spec = spec
        self.plugin = plugin
        self.distribution = distribution
        self._class = kernel_class
        self._error: KernelImportError | None = None

    @property
    def name(self) -> str:
        """The class's name."""
        return self.spec.name

    def load(self) -> type[LinearKernel[Any]]:
        """The class; imported at the first call.

        Raises:
            KernelImportError: the import fails, in whatever way, or gives no fitting class.
        """
        if self._class is None:
            if self._error is None:
                self._import()
            if self._error is not None:
                raise self._error
        assert self._class is not None
        return self._class

    def _import(self) -> None:
        module_name, _, attribute = self.spec.entry.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:  # a plugin's module may raise anything
            what = f"importing {self.spec.entry} failed: {type(error).__name__}: {error}"
            self._error = KernelImportError(what, traceback.format_exc())
            return
        why = check_kernel_class(found, self.spec.kernel_type)
        if why is None and found.__name__ != self.spec.name:
            why = f"the class is called {found.__name__}, its spec {self.spec.name}"
        if why is not None:
            self._error = KernelImportError(f"{self.spec.entry}: {why}")
        else:
            self._class = found

    def __repr__(self) -> str:
        return f"RegisteredKernel({self.spec.name}, {self.spec.kernel_type}, {self.distribution})"


def check_kernel_class(found: object, kernel_type: str) -> str | None:
    """Why ``found`` is not a usable kernel class of this type; None where it is."""
    if kernel_type not in KERNEL_TYPES:
        return f"no kernel type is called {kernel_type!r}; there are {', '.join(KERNEL_TYPES)}"
    base = KERNEL_TYPES[kernel_type].base_class
    if not isinstance(found, type):
        return f"{found!r} is not a class"
    composite = issubclass(found, CompositeLinearKernel) and not KERNEL_TYPES[kernel_type].routed
    if not issubclass(found, base) and not composite:
        return f"{found.__name__} does not derive from {base.__name__}"
    if composite and getattr(found, "kernel_type", None) != kernel_type:
        return f"{found.__name__}.kernel_type is not {kernel_type!r}"
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        return f"{found.__name__} does not implement {', '.join(missing)}"
    return None
