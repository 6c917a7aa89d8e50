"""Find the installed plugins through their entry points; `get_registry` gives the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from threading import RLock

from qcore.registry.hooks import ENTRY_POINT_GROUP
from qcore.registry.registry import PluginRecord, Registry

__all__ = ["discover", "get_registry", "reset_registry", "use_registry"]

_lock = RLock()
_registry: Registry | None = None


def discover(disabled: Iterable[str] = (), found: Iterable[EntryPoint] | None = None) -> Registry:
    """A registry of every plugin that is installed. Never raises because of a plugin.

    Args:
        disabled: names of plugins (entry point or distribution) to leave out, unimported.
        found: entry points to take instead of the installed ones.
    """
    registry = Registry()
    names = {name.lower() for name in disabled}
    points = entry_points(group=ENTRY_POINT_GROUP) if found is None else found
    seen: set[tuple[str, str]] = set()
    for point in sorted(points, key=_order):
        distribution, version = _origin(point)
        if (distribution, point.name) in seen:
            continue  # the same distribution, found twice on the path
        seen.add((distribution, point.name))
        record = PluginRecord(point.name, distribution, version)
        if {point.name.lower(), distribution.lower()} & names:
            record.status = "disabled"
        elif any(p.name == point.name and p.status == "ok" for p in registry.plugins):
            record.status = "failed"
            registry.fail(
                point.name, "name", f"two plugins have this name; {distribution} is left out"
            )
        else:
            try:
                record.module = point.load()
            except (Exception, SystemExit) as error:  # a plugin's module may raise anything
                record.status = "failed"
                registry.fail(point.name, "import", error)
        registry.add_plugin(record)
    return registry


def _origin(point: EntryPoint) -> tuple[str, str]:
    dist = getattr(point, "dist", None)
    return (dist.name, dist.version) if dist is not None else ("unknown", "")


def _order(point: EntryPoint) -> tuple[str, str]:
    return _origin(point)[0], point.name


def get_registry() -> Registry:
    """The process's registry, discovered at the first call."""
    global _registry
    if _registry is None:
        with _lock:
            if _registry is None:
                # The one lower floor that reads the environment, through the module that may.
                from qcore.settings import disabled_plugins

                _registry = discover(disabled_plugins())
    return _registry


def reset_registry() -> None:
    """Forget the registry, and with it run-time registrations; the next use discovers anew."""
    global _registry
    with _lock:
        _registry = None


@contextmanager
def use_registry(registry: Registry) -> Iterator[Registry]:
    """Make ``registry`` the process's registry for the length of a ``with`` block."""
    global _registry
    with _lock:
        before, _registry = _registry, registry
    try:
        yield registry
    finally:
        with _lock:
            _registry = before
