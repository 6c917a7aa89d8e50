"""`isolated_registry`: a registry of one's own for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qcore.registry import PluginRecord, Registry, use_registry

__all__ = ["isolated_registry"]


@contextmanager
def isolated_registry(*plugins: object, reference: bool = True) -> Iterator[Registry]:
    """Replace the process's registry by one that holds only the given plugins.

    Nothing that is installed takes part, and what is registered meanwhile is gone afterwards.
    A plugin that is broken is recorded in `Registry.failures`, as it would be when installed.

    Args:
        plugins: modules or objects that implement the hooks.
        reference: whether the reference kernels are there as well.
    """
    registry = Registry()
    if reference:
        from qcore.reference import plugin as own

        registry.add_plugin(PluginRecord("reference", "qcore", "", module=own))
    for index, plugin in enumerate(plugins):
        name = getattr(plugin, "__name__", type(plugin).__name__)
        registry.add_plugin(PluginRecord(f"{name}-{index}", f"test-{index}", "", module=plugin))
    with use_registry(registry):
        yield registry
