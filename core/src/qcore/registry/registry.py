"""`Registry`: every kernel and plugin that is installed, and what went wrong with them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import RLock
from typing import Any

import pluggy

from qcore.errors import RegistrationError
from qcore.facts.platform import Platform
from qcore.kernels.base import LinearKernel
from qcore.kernels.types import KERNEL_TYPES
from qcore.registry.entry import RegisteredKernel, check_kernel_class
from qcore.registry.hooks import API_VERSION, PROJECT, DoctorLine, PluginHooks, PluginInfo
from qcore.registry.spec import KernelSpec

__all__ = ["Failure", "PluginRecord", "Registry"]


@dataclass(frozen=True)
class Failure:
    """Something that went wrong with a plugin and hurt nobody else.

    Attributes:
        plugin: the entry point's name.
        what: which part: ``import``, ``api version``, ``hook qcore_kernels``, ``kernel NAME`` ...
        reason: in words.
        details: the traceback, or "".
    """

    plugin: str
    what: str
    reason: str
    details: str = ""


@dataclass
class PluginRecord:
    """A plugin that was found.

    Attributes:
        name: the entry point's name.
        distribution: the distribution that brings it.
        version: of the distribution.
        status: ``ok``, ``failed`` (nothing of it is used) or ``disabled``.
        info: what the plugin says of itself, if it could.
        module: the registered object, if it could be loaded.
        kernels: names of its kernels that are in the registry.
    """

    name: str
    distribution: str
    version: str
    status: str = "ok"
    info: PluginInfo | None = None
    module: object | None = None
    kernels: list[str] = field(default_factory=list)


_serials = count()


class Registry:
    """Kernels by type and platform. Starts empty; see `qcore.registry.discovery`.

    Args:
        known: another registry, if this one is a choice of its kernels: settings may name what is
            in either.

    Attributes:
        plugins: every plugin that was found, used or not.
        failures: what went wrong with them.
        generation: rises whenever the kernels change.
        serial: another for each registry of the process; with `generation` it names a state.
    """

    def __init__(self, known: Registry | None = None) -> None:
        self._known = known
        self.plugins: list[PluginRecord] = []
        self.failures: list[Failure] = []
        self.generation = 0
        self.serial = next(_serials)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(PluginHooks)
        self._kernels: list[RegisteredKernel] = []
        self._keys: dict[tuple[str, Platform, str], RegisteredKernel] = {}
        self._methods: dict[str, tuple[str, str]] = {}
        self._decoding_passes: list[str] = []
        self._lock = RLock()

    # -- reading -----------------------------------------------------------------------------

    def kernels(
        self, kernel_type: str | None = None, platform: Platform | None = None
    ) -> list[RegisteredKernel]:
        """Kernels of a type and platform, in the order of selection.

        That is: by falling priority, then by the names of distribution and kernel.
        """
        with self._lock:
            found = [
                kernel
                for kernel in self._kernels
                if (kernel_type is None or kernel.spec.kernel_type == kernel_type)
                and (platform is None or platform in kernel.spec.platforms)
            ]
        return sorted(found, key=lambda k: (-k.spec.priority, k.distribution, k.name))

    def kernel_names(self) -> list[str]:
        """Every name of a kernel that settings may name, sorted."""
        known = self._known.kernel_names() if self._known is not None else ()
        with self._lock:
            return sorted({kernel.name for kernel in self._kernels}.union(known))

    def backends(self) -> dict[str, str]:
        """Backend name -> explanation, from kernels and plugins."""
        with self._lock:
            named = {kernel.spec.backend: "" for kernel in self._kernels}
            for plugin in self.plugins:
                if plugin.status == "ok" and plugin.info is not None:
                    named.update(plugin.info.backends)
        if self._known is not None:
            named.update(self._known.backends())
        return dict(sorted(named.items()))

    def quantization_methods(self) -> dict[str, str]:
        """Methods that plugins bring: name -> ``module:Class``."""
        return {name: entry for name, (entry, _) in self._methods.items()}

    def decoding_passes(self) -> list[str]:
        """What plugins do to a decoding step's graph: ``module:function`` of each, in order."""
        return list(self._decoding_passes)

    def doctor(self) -> list[tuple[str, DoctorLine]]:
        """(plugin, line) for all that the plugins' doctors say; one that raises is such a line."""
        lines: list[tuple[str, DoctorLine]] = []
        for plugin in self.plugins:
            if plugin.status != "ok":
                continue
            try:
                found = self._call(plugin, "qcore_doctor") or []
                lines += [(plugin.name, line) for line in found if isinstance(line, DoctorLine)]
            except (Exception, SystemExit) as error:
                text = f"its doctor raised {type(error).__name__}: {error}"
                lines.append((plugin.name, DoctorLine("doctor", text, ok=False)))
        return lines

    # -- plugins -----------------------------------------------------------------------------

    def add_plugin(self, record: PluginRecord) -> None:
        """Take in a loaded plugin. Never raises: what is wrong with it is recorded."""
        with self._lock:
            self.plugins.append(record)
            if record.status != "ok":
                return
            try:
                self._introduce(record)
            except (Exception, SystemExit) as error:
                record.status = "failed"
                what = "qcore_plugin" if isinstance(error, RegistrationError) else "registration"
                self.fail(record.name, what, error)
                return
            for hook, take in (
                ("qcore_kernels", self._take_kernels),
                ("qcore_quantization_methods", self._take_methods),
                ("qcore_decoding_passes", self._take_passes),
            ):
                try:
                    take(record, self._call(record, hook))
                except (Exception, SystemExit) as error:
                    self.fail(record.name, f"hook {hook}", error)
            self.generation += 1

    def _introduce(self, record: PluginRecord) -> None:
        self._manager.register(record.module, name=record.name)
        info = self._call(record, "qcore_plugin")
        if not isinstance(info, PluginInfo):
            raise RegistrationError(f"qcore_plugin() gives {info!r}; it must give a PluginInfo")
        if info.api_version != API_VERSION:
            newer = isinstance(info.api_version, int) and info.api_version > API_VERSION
            raise RegistrationError(
                f"it is written for plugin API {info.api_version!r}, this qcore has "
                f"{API_VERSION}: update {'qcore' if newer else record.distribution}"
            )
        record.info = info
        for name in dir(record.module):
            if name.startswith("qcore_") and not hasattr(PluginHooks, name):
                value = getattr(record.module, name, None)
                if getattr(value, f"{PROJECT}_impl", None) is not None:
                    self.fail(record.name, f"hook {name}", f"there is no hook {name!r}")

    def _call(self, record: PluginRecord, hook: str) -> Any:
        """Call one plugin's implementation of a hook; None where it has none."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            if implementation.plugin is record.module:
                return implementation.function()
        return None

    def _take_kernels(self, record: PluginRecord, specs: Sequence[KernelSpec] | None) -> None:
        for spec in specs or ():
            name = str(getattr(spec, "name", spec))
            try:
                if not isinstance(spec, KernelSpec):
                    raise RegistrationError(f"{spec!r} is not a KernelSpec")
                self._add(RegisteredKernel(spec, record.name, record.distribution))
                record.kernels.append(spec.name)
            except Exception as error:
                self.fail(record.name, f"kernel {name}", error)

    def _take_methods(self, record: PluginRecord, methods: Mapping[str, str] | None) -> None:
        for name, entry in (methods or {}).items():
            if name in self._methods:
                owner = self._methods[name][1]
                self.fail(record.name, f"method {name}", f"the name is taken by {owner}")
            elif not isinstance(entry, str) or entry.count(":") != 1:
                self.fail(record.name, f"method {name}", f"{entry!r} is not 'module:Class'")
            else:
                self._methods[name] = (entry, record.distribution)

    def _take_passes(self, record: PluginRecord, entries: Sequence[str] | None) -> None:
        for entry in entries or ():
            if not isinstance(entry, str) or entry.count(":") != 1:
                self.fail(record.name, "decoding pass", f"{entry!r} is not 'module:function'")
            else:
                self._decoding_passes.append(entry)

    def fail(self, plugin: str, what: str, error: BaseException | str) -> None:
        """Record that something is wrong with a plugin."""
        if isinstance(error, str):
            self.failures.append(Failure(plugin, what, error))
            return
        reason = str(error) or type(error).__name__
        if not isinstance(error, RegistrationError):
            reason = f"{type(error).__name__}: {reason}"
        details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.failures.append(Failure(plugin, what, reason, details))

    # -- kernels -----------------------------------------------------------------------------

    def _add(self, kernel: RegisteredKernel) -> None:
        spec = kernel.spec
        if spec.kernel_type not in KERNEL_TYPES:
            known = ", ".join(KERNEL_TYPES)
            raise RegistrationError(
                f"no kernel type is called {spec.kernel_type!r}; there are {known}"
            )
        keys = [(spec.kernel_type, platform, spec.name) for platform in spec.platforms]
        for key in keys:
            if key in self._keys:
                other = self._keys[key]
                raise RegistrationError(
                    f"{spec.name} ({spec.kernel_type}, {key[1]}) is there already, "
                    f"from {other.distribution}"
                )
        for key in keys:
            self._keys[key] = kernel
        self._kernels.append(kernel)

    def register_class(self, kernel_class: type[LinearKernel[Any]], spec: KernelSpec) -> None:
        """Add a class at run time; the same class and spec again change nothing.

        Raises:
            RegistrationError: the class is no kernel of this type, or the name is taken.
        """
        why = check_kernel_class(kernel_class, spec.kernel_type)
        if why is not None:
            raise RegistrationError(f"cannot register {kernel_class!r}: {why}")
        with self._lock:
            for platform in spec.platforms:
                old = self._keys.get((spec.kernel_type, platform, spec.name))
                if old is not None and old._class is kernel_class and old.spec == spec:
                    return
            self._add(RegisteredKernel(spec, "runtime", "runtime", kernel_class))
            self.generation += 1

    def unregister(self, names: Iterable[str]) -> None:
        """Take out kernels that were registered at run time."""
        gone = set(names)
        with self._lock:
            for kernel in [k for k in self._kernels if k.plugin == "runtime" and k.name in gone]:
                self._kernels.remove(kernel)
                for platform in kernel.spec.platforms:
                    del self._keys[(kernel.spec.kernel_type, platform, kernel.name)]
            self.generation += 1
