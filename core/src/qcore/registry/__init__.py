"""Floor 5: which kernels there are. Plugins declare them; none is imported before its time."""

from qcore.registry.discovery import discover, get_registry, reset_registry, use_registry
from qcore.registry.entry import KernelImportError, RegisteredKernel
from qcore.registry.hooks import (
    API_VERSION,
    ENTRY_POINT_GROUP,
    DoctorLine,
    PluginInfo,
    hookimpl,
    hookspec,
)
from qcore.registry.registry import Failure, PluginRecord, Registry
from qcore.registry.spec import Evidence, KernelSpec, Numerics, Priority

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "DoctorLine",
    "Evidence",
    "Failure",
    "KernelImportError",
    "KernelSpec",
    "Numerics",
    "PluginInfo",
    "PluginRecord",
    "Priority",
    "RegisteredKernel",
    "Registry",
    "discover",
    "get_registry",
    "hookimpl",
    "hookspec",
    "reset_registry",
    "use_registry",
]
