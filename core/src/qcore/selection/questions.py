"""The questions that a candidate is asked: first its declaration, then its class."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from qcore.facts.target import Target
from qcore.kernels.base import Answer, LinearKernel
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.entry import KernelImportError, RegisteredKernel
from qcore.registry.spec import KernelSpec, Numerics
from qcore.selection.decision import Stage
from qcore.settings import Settings

__all__ = [
    "Refusal",
    "asked_refusal",
    "config_refusal",
    "declared_refusal",
    "read_answer",
    "support_refusal",
]

Refusal = tuple[Stage, str, str]
"""Where a kernel was refused, why, and the traceback if an exception did it (else "")."""


def declared_refusal(
    spec: KernelSpec, target: Target, settings: Settings, backend: str
) -> Refusal | None:
    """What the declaration alone refuses; nothing is imported.

    Args:
        spec: the kernel.
        target: the machine.
        settings: what the user asks for.
        backend: the backend asked for, or ``auto``.
    """
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


def asked_refusal(
    kernel: RegisteredKernel, config: MMLinearLayerConfig, target: Target
) -> Refusal | None:
    """What the class refuses when it is asked."""
    return support_refusal(kernel, target) or config_refusal(kernel, config)


def support_refusal(kernel: RegisteredKernel, target: Target) -> Refusal | None:
    """What the class refuses whatever the layer is."""
    return _asked(kernel, Stage.SUPPORT, lambda cls: cls.is_supported(target.compute_capability))


def config_refusal(kernel: RegisteredKernel, config: MMLinearLayerConfig) -> Refusal | None:
    """What the class refuses of a layer, on hardware that it supports."""
    return _asked(kernel, Stage.CONFIG, lambda cls: cls.can_implement(config))


def _asked(
    kernel: RegisteredKernel, stage: Stage, ask: Callable[[type[LinearKernel[Any]]], object]
) -> Refusal | None:
    try:
        kernel_class = kernel.load()
    except KernelImportError as error:
        return Stage.IMPORT, str(error), error.details
    try:
        able, reason = read_answer(ask(kernel_class))
    except (Exception, SystemExit) as error:  # a plugin's code may raise anything
        return stage, f"raised {type(error).__name__}: {error}", traceback.format_exc()
    return None if able else (stage, reason or "gives no reason", "")


def read_answer(reply: object) -> Answer:
    """Check what a kernel class answered.

    Raises:
        TypeError: it is not ``(bool, reason)``.
    """
    if not (isinstance(reply, tuple) and len(reply) == 2 and isinstance(reply[0], bool)):
        raise TypeError(f"the answer is {reply!r}; it must be (True, None) or (False, reason)")
    return reply
