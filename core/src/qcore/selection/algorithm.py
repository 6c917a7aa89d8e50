"""`select`: the one algorithm that chooses a kernel, for every kernel type.

The kernels of the layer's type are taken in order: those the user forces, then by falling priority,
then by the name of their distribution. Each is asked the questions of `Stage`, in that order, until
one refuses it or none does; the first that no question refuses is chosen. The first seven questions
are answered by the declaration alone, so a class is imported only when it is really wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from qcore.errors import NoKernelError
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.discovery import get_registry
from qcore.registry.entry import RegisteredKernel
from qcore.registry.registry import Registry
from qcore.selection.decision import Candidate, Decision
from qcore.selection.names import check_names
from qcore.selection.questions import asked_refusal, declared_refusal
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
        registry.serial,
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
    notes = check_names(settings, registry, forced)
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
        _warn_once(note)
    decision = Decision(config, target, tuple(candidates), tuple(notes), tuple(unmet))
    log.debug("%s", decision.render())
    return decision


@lru_cache(maxsize=1024)
def _warn_once(note: str) -> None:
    """A model has hundreds of layers, and one warning for all of them is enough."""
    log.warning("%s", note)


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
            refusal = declared_refusal(kernel.spec, target, settings, wanted) or asked_refusal(
                kernel, config, target
            )
            if refusal is None:
                candidates.append(Candidate(kernel, priority, chosen=not found))
                found = True
            else:
                stage, why, details = refusal
                candidates.append(Candidate(kernel, priority, stage, why, details=details))
    return candidates


def _dependency_notes(candidates: Iterable[Candidate], target: Target) -> list[str]:
    """Say what a kernel chosen for another machine would need there."""
    if target.is_current:
        return []
    return [
        f"{c.name} needs {', '.join(c.kernel.spec.modules)} installed on that machine"
        for c in candidates
        if c.chosen and c.kernel.spec.modules
    ]
