"""All that a plugin's declaration needs, and nothing else::

from qcore.plugin import API_VERSION, KernelSpec, Platform, PluginInfo, Priority, hookimpl
"""

from qcore.facts.platform import Platform
from qcore.registry.hooks import API_VERSION, DoctorLine, PluginInfo, hookimpl
from qcore.registry.spec import Evidence, KernelSpec, Numerics, Priority

__all__ = [
    "API_VERSION",
    "DoctorLine",
    "Evidence",
    "KernelSpec",
    "Numerics",
    "Platform",
    "PluginInfo",
    "Priority",
    "hookimpl",
]
