"""The names in the settings: do they name anything, and if not, what is near?"""

from __future__ import annotations

from collections.abc import Sequence

from qcore.errors import SettingsError
from qcore.kernels.types import KERNEL_TYPES
from qcore.registry.registry import Registry
from qcore.selection.nearest import nearest
from qcore.settings import Settings

__all__ = ["check_names"]


def check_names(settings: Settings, registry: Registry, forced: Sequence[str]) -> list[str]:
    """Look for names that match nothing.

    Returns:
        Notes on such names among the disabled kernels and the priorities, with the nearest names.

    Raises:
        SettingsError: a forced kernel, a backend or a kernel type does not exist.
    """
    known = registry.kernel_names()
    notes = []
    for name in sorted(settings.disabled_kernels - set(known)):
        where = settings.source("disabled_kernels")
        notes.append(f"{where} names {name!r}, no kernel's name{nearest(name, known)}")
    for name, _ in settings.priorities:
        if name not in known:
            notes.append(
                f"QCORE_KERNEL_PRIORITY names {name!r}, no kernel's name{nearest(name, known)}"
            )
    for name in forced:
        if name not in known:
            raise SettingsError(f"no kernel is called {name!r} to force{nearest(name, known)}")
    backends = list(registry.backends())
    asked = [backend for _, backend in settings.linear_backend_per_type]
    for backend in (settings.linear_backend, *asked):
        if backend not in ("auto", *backends):
            raise SettingsError(
                f"{settings.source('linear_backend')} asks for {backend!r}, which no installed "
                f"plugin brings{nearest(backend, backends)}; there are: auto, {', '.join(backends)}"
            )
    for kernel_type, _ in settings.linear_backend_per_type:
        if kernel_type not in KERNEL_TYPES:
            raise SettingsError(
                f"{settings.source('linear_backend')} names the kernel type {kernel_type!r}; "
                f"there are: {', '.join(KERNEL_TYPES)}"
            )
    return notes
