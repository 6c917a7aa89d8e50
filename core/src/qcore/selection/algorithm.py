"""`select`: the one algorithm that chooses a kernel, for every kernel type.

The kernels of the layer's type are taken in order: those the user forces, then by falling priority,
then by the name of their distribution. Each is asked the questions of `Stage`, in that order, until
one refuses it or none does; the first that no question refuses is chosen. The first six questions
are answered by the declaration alone, so a class is imported only when it is really wanted.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from qcore.errors import NoKernelError, SettingsError
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.kernels.base import Answer
from qcore.kernels.types import KERNEL_TYPES
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.discovery import get_registry
from qcore.registry.entry import KernelImportError, RegisteredKernel
from qcore.registry.registry import Registry
from qcore.registry.spec import KernelSpec, Numerics
from qcore.selection.decision import Candidate, Decision, Stage
from qcore.selection.nearest import nearest
from qcore.settings import Settings

__all__ = ["select"]

log = logging.getLogger("qcore.selection")

_MAX_CACHED = 4096
_cache: dict[Any, Decision] = {}


def select(
    config: MMLinearLayerConfig,
    target: Target | str | None = None,
    *,
    settings: Settings | None = None,
    registry: Registry | None = None,
    force: Sequence[str] = (),
    exhaustive: bool = False,
) -> Decision:
    """Choose the kernel for a layer.

    Args:
        config: the layer.
        target: the machine, or its text (``cuda:sm_90``); None for this one.
        settings: what the user asks for; None to read the environment.
        registry: the kernels; None for all that are installed.
        force: class names to try before all others, before those of the settings.
        exhaustive: ask the candidates after the chosen one as well.

    Returns:
        The decision. It may have chosen nothing; `Decision.kernel_class` then raises.

    Raises:
        SettingsError: a setting names a backend or a forced kernel that does not exist.
        NoKernelError: in strict mode, what was asked for cannot run the layer.
    """
    if settings is None:
        settings = Settings.from_env()
    if registry is None:
        registry = get_registry()
    if target is None:
        target = Target.current()
    elif isinstance(target, str):
        target = Target.parse(target)
    key = (
        config,
        target,
        target.is_current,
        settings,
        id(registry),
        registry.generation,
        tuple(force),
        exhaustive,
    )
    decision = _cache.get(key)
    if decision is None:
        decision = _select(config, target, settings, registry, tuple(force), exhaustive)
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[key] = decision
    if settings.strict and decision.unmet:
        raise NoKernelError(decision)
    return decision


def _select(
    config: MMLinearLayerConfig,
    target: Target,
    settings: Settings,
    registry: Registry,
    force: tuple[str, ...],
    exhaustive: bool,
) -> Decision:
    kernels = registry.kernels(config.kernel_type)
    forced = (*force, *settings.force_kernel)
    notes = _check_names(settings, registry, forced)
    ranked = _rank(kernels, forced, dict(settings.priorities))
    backend = settings.backend_for(config.kernel_type)

    candidates = _weigh(ranked, config, target, settings, backend, forced, exhaustive)
    unmet = []
    if backend != "auto" and not any(c.chosen for c in candidates):
        unmet.append(f"backend {backend!r} has no kernel that can run this layer")
        if not settings.strict:
            notes.append(f"{unmet[-1]}; the others were asked")
            candidates = _weigh(ranked, config, target, settings, "auto", forced, exhaustive)
    for candidate in candidates:
        if candidate.name in forced and not candidate.chosen and candidate.stage is not None:
            unmet.append(f"{candidate.name} is forced, but: {candidate.reason}")
            if not settings.strict:
                notes.append(f"{unmet[-1]}; another kernel was chosen")
            else:
                candidates = [replace(c, chosen=False) for c in candidates]
    notes += unmet if settings.strict else []
    notes += _dependency_notes(candidates, target)
    for note in notes:
        log.warning("%s (%s)", note, config.describe())
    decision = Decision(config, target, tuple(candidates), tuple(notes), tuple(unmet))
    log.debug("%s", decision.render())
    return decision


def _rank(
    kernels: Iterable[RegisteredKernel], forced: Sequence[str], overridden: dict[str, int]
) -> list[tuple[int, RegisteredKernel]]:
    """(priority, kernel) in the order in which they are asked."""
    position = {name: index for index, name in reversed(list(enumerate(forced)))}
    ranked = [(overridden.get(k.name, k.spec.priority), k) for k in kernels]
    return sorted(
        ranked,
        key=lambda pair: (
            position.get(pair[1].name, len(position)),
            -pair[0],
            pair[1].distribution,
            pair[1].name,
        ),
    )


def _weigh(
    ranked: Iterable[tuple[int, RegisteredKernel]],
    config: MMLinearLayerConfig,
    target: Target,
    settings: Settings,
    backend: str,
    forced: Sequence[str],
    exhaustive: bool,
) -> list[Candidate]:
    candidates = []
    found = False
    with weighing(target):
        for priority, kernel in ranked:
            if found and not exhaustive:
                candidates.append(Candidate(kernel, priority, tried=False))
                continue
            wanted = "auto" if kernel.name in forced else backend
            refusal = _declared_refusal(kernel.spec, target, settings, wanted) or _asked_refusal(
                kernel, config, target
            )
            if refusal is None:
                candidates.append(Candidate(kernel, priority, chosen=not found))
                found = True
            else:
                stage, why, details = refusal
                candidates.append(Candidate(kernel, priority, stage, why, details=details))
    return candidates


Refusal = tuple[Stage, str, str]


def _declared_refusal(
    spec: KernelSpec, target: Target, settings: Settings, backend: str
) -> Refusal | None:
    """What the declaration alone refuses."""
    if spec.name in settings.disabled_kernels:
        return Stage.DISABLED, f"named in {settings.source('disabled_kernels')}", ""
    if backend not in ("auto", spec.backend):
        return Stage.BACKEND, f"backend {backend!r} was asked for, this is {spec.backend!r}", ""
    if settings.batch_invariant and not spec.batch_invariant:
        return Stage.BATCH_INVARIANCE, "a row's result may depend on the rest of the batch", ""
    if spec.numerics is Numerics.APPROXIMATE and not settings.approximate:
        reason = "rounds what the checkpoint does not; QCORE_NUMERICS=approximate allows it"
        return Stage.NUMERICS, reason, ""
    if target.platform not in spec.platforms:
        return Stage.PLATFORM, f"is for {', '.join(map(str, spec.platforms))}", ""
    lacking = _hardware_refusal(spec, target)
    if lacking is not None:
        return Stage.CAPABILITY, lacking, ""
    if target.is_current:
        absent = [module for module in spec.modules if not _is_installed(module)]
        if absent:
            return Stage.DEPENDENCY, f"needs {', '.join(absent)}, not installed", ""
    return None


def _hardware_refusal(spec: KernelSpec, target: Target) -> str | None:
    capability = target.compute_capability
    if capability is not None:
        if spec.min_capability is not None and capability < spec.min_capability:
            return f"needs compute capability {spec.min_capability}, this is {capability}"
        if spec.max_capability is not None and capability > spec.max_capability:
            return f"for compute capability up to {spec.max_capability}, this is {capability}"
    if spec.archs and target.arch not in spec.archs:
        return f"is for {', '.join(spec.archs)}, this is {target.arch or 'not known'}"
    missing = [feature for feature in spec.cpu_features if feature not in target.cpu_features]
    return f"needs a processor with {', '.join(missing)}" if missing else None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _asked_refusal(
    kernel: RegisteredKernel, config: MMLinearLayerConfig, target: Target
) -> Refusal | None:
    """What the class refuses when it is asked."""
    try:
        kernel_class = kernel.load()
    except KernelImportError as error:
        return Stage.IMPORT, str(error), error.details
    for stage in (Stage.SUPPORT, Stage.CONFIG):
        try:
            if stage is Stage.SUPPORT:
                reply = kernel_class.is_supported(target.compute_capability)
            else:
                reply = kernel_class.can_implement(config)
            able, reason = _read_answer(reply)
        except (Exception, SystemExit) as error:  # a plugin's code may raise anything
            return stage, f"raised {type(error).__name__}: {error}", traceback.format_exc()
        if not able:
            return stage, reason or "gives no reason", ""
    return None


def _read_answer(reply: object) -> Answer:
    if not (isinstance(reply, tuple) and len(reply) == 2 and isinstance(reply[0], bool)):
        raise TypeError(f"the answer is {reply!r}; it must be (True, None) or (False, reason)")
    return reply


# -- what the user should know besides ---------------------------------------------------------


def _check_names(settings: Settings, registry: Registry, forced: Sequence[str]) -> list[str]:
    """Notes on disabled names that match nothing; errors for other names that match nothing."""
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


def _dependency_notes(candidates: Iterable[Candidate], target: Target) -> list[str]:
    """Say what a kernel chosen for another machine would need there."""
    if target.is_current:
        return []
    return [
        f"{c.name} needs {', '.join(c.kernel.spec.modules)} installed on that machine"
        for c in candidates
        if c.chosen and c.kernel.spec.modules
    ]
