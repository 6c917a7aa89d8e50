"""`Diagnosis`: what there is to know about this machine and installation; for ``qcore doctor``.

Nothing that a plugin, a driver or the environment does may stop it: what cannot be found out is a
problem that is listed with the others.
"""

from __future__ import annotations

import os
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from qcore.cli.standing import Standing
    from qcore.facts.target import Target
    from qcore.registry import DoctorLine, Failure, PluginRecord, Registry
    from qcore.settings import Settings

__all__ = ["COMPANIONS", "Diagnosis", "diagnose"]

T = TypeVar("T")

COMPANIONS = ("torch", "transformers", "safetensors", "accelerate", "triton", "compressed-tensors")
"""Distributions whose versions matter; none of them is imported to find out."""

_PLUGIN_VARIABLE = "QCORE_DISABLED_PLUGINS"


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        versions: distribution -> version, or None where it is not installed.
        system: Python and the operating system, in words.
        target: this machine; None if it could not be told.
        devices: accelerators, in words.
        threads: how many torch uses; None if it could not be told.
        plugins: what was discovered.
        failures: what went wrong with plugins.
        lines: (plugin, line) that the plugins' own doctors say.
        standings: every kernel, tried here.
        variables: those that are set.
        problems: in words: what somebody should look at.
    """

    versions: dict[str, str | None] = field(default_factory=dict)
    system: dict[str, str] = field(default_factory=dict)
    target: Target | None = None
    devices: list[str] = field(default_factory=list)
    threads: int | None = None
    plugins: list[PluginRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lines: list[tuple[str, DoctorLine]] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        usable = [s.kernel.name for s in self.standings if s.usable]
        return {
            "versions": self.versions,
            "system": self.system,
            "target": str(self.target) if self.target else None,
            "device_name": self.target.device_name if self.target else None,
            "cpu_features": sorted(self.target.cpu_features) if self.target else [],
            "devices": self.devices,
            "threads": self.threads,
            "plugins": [
                {
                    "name": plugin.name,
                    "distribution": plugin.distribution,
                    "version": plugin.version,
                    "status": plugin.status,
                    "kernels": list(plugin.kernels),
                }
                for plugin in self.plugins
            ],
            "findings": [
                {"plugin": plugin, "topic": line.topic, "text": line.text, "ok": line.ok}
                for plugin, line in self.lines
            ],
            "usable_kernels": usable,
            "unusable_kernels": [s.to_dict() for s in self.standings if not s.usable],
            "failures": [
                {"plugin": f.plugin, "what": f.what, "reason": f.reason, "details": f.details}
                for f in self.failures
            ],
            "variables": self.variables,
            "problems": self.problems,
        }


def diagnose() -> Diagnosis:
    """Look at everything. Never raises."""
    found = Diagnosis()
    found.versions = {name: _version(name) for name in ("qcore", *COMPANIONS)}
    found.system = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    found.target = _tried(found, "this machine", _target)
    found.devices = _tried(found, "its devices", _devices) or []
    found.threads = _tried(found, "its threads", _threads)
    registry = _tried(found, "the plugins", _registry)
    settings = _tried(found, "the settings", _settings)
    found.variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("QCORE_") or name in _known_variables()
    }
    if registry is not None:
        found.plugins = list(registry.plugins)
        found.lines = registry.doctor()
        if found.target is not None:
            found.standings = _standings(registry, found.target, settings)
        found.failures = list(registry.failures)
        found.problems += _plugin_problems(found)
        found.problems += _setting_problems(registry, settings)
    found.problems += _variable_problems(found)
    return found


def _tried(found: Diagnosis, what: str, ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except (Exception, SystemExit) as error:  # drivers and plugins may raise anything
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if type(error).__module__.startswith("qcore") else f" (line {where.lineno} of "
        place += f"{os.path.basename(where.filename)})" if place else ""
        found.problems.append(f"{what}: {type(error).__name__}: {error}{place}")
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _target() -> Target:
    from qcore.facts.target import Target

    return Target.current()


def _devices() -> list[str]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        arch = (
            getattr(seen, "gcnArchName", "")
            if torch.version.hip
            else f"sm_{seen.major}{seen.minor}"
        )
        devices.append(f"cuda:{index} {seen.name}, {arch}, {seen.total_memory / 2**30:.0f} GiB")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for index in range(torch.xpu.device_count()):
            devices.append(f"xpu:{index} {torch.xpu.get_device_name(index)}")
    return devices


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _registry() -> Registry:
    from qcore.registry import get_registry

    return get_registry()


def _settings() -> Settings:
    from qcore.settings import Settings

    return Settings.from_env()


def _known_variables() -> tuple[str, ...]:
    from qcore.settings import VARIABLES

    return (*VARIABLES, _PLUGIN_VARIABLE)


def _standings(registry: Registry, target: Target, settings: Settings | None) -> list[Standing]:
    from qcore.cli.standing import tried_standing
    from qcore.settings import Settings

    in_force = settings if settings is not None else Settings()
    return [tried_standing(kernel, target, in_force) for kernel in registry.kernels()]


def _plugin_problems(found: Diagnosis) -> list[str]:
    problems = [f"plugin {f.plugin}, {f.what}: {f.reason}" for f in found.failures]
    problems += [
        f"plugin {plugin}, {line.topic}: {line.text}" for plugin, line in found.lines if not line.ok
    ]
    # What the machine or the user rules out is as it should be; an import that fails is not.
    problems += [
        f"{s.kernel.name}: {s.reason}"
        for s in found.standings
        if s.stage is not None and (str(s.stage) == "import" or s.details)
    ]
    return problems


def _setting_problems(registry: Registry, settings: Settings | None) -> list[str]:
    """Settings that name what is not there."""
    from qcore.errors import QcoreError
    from qcore.selection.names import check_names

    if settings is None:
        return []
    try:
        return check_names(settings, registry, settings.force_kernel)
    except QcoreError as error:
        return [str(error)]


def _variable_problems(found: Diagnosis) -> list[str]:
    """Names that are nearly a variable's, and plugins that are switched off and not there."""
    from qcore.selection.nearest import nearest
    from qcore.settings import disabled_plugins

    problems = []
    known = list(_known_variables())
    for name in found.variables:
        if name not in known and (hint := nearest(name, known)):
            problems.append(f"{name} is set, but nothing in the core reads it{hint}")
    plugins = sorted({p.name for p in found.plugins} | {p.distribution for p in found.plugins})
    for name in sorted(disabled_plugins()):
        if name.lower() not in {plugin.lower() for plugin in plugins}:
            hint = nearest(name, plugins)
            problems.append(f"{_PLUGIN_VARIABLE} names {name!r}, no installed plugin{hint}")
    return problems
