"""`check_kernel`: every check on every layer that a kernel implements."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from qcore.errors import ConfigError
from qcore.kernels.base import LinearKernel
from qcore.kernels.types import KERNEL_TYPES
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.spec import Evidence, KernelSpec
from qcore.testing.answers import check_answers, check_refusals
from qcore.testing.configs import conformance_configs, spread
from qcore.testing.experts import check_experts
from qcore.testing.graphs import check_compile, check_opcheck
from qcore.testing.oracle import Arithmetic
from qcore.testing.outcome import Outcome
from qcore.testing.packing import check_packing
from qcore.testing.record import evidence
from qcore.testing.report import ConformanceReport
from qcore.testing.results import (
    check_batch_invariance,
    check_contract,
    check_nan_propagation,
    check_numerics,
)
from qcore.testing.subject import ConformanceError, Kernel, Subject

__all__ = ["CHECKS", "check_claimed", "check_kernel"]

Check = Callable[[Kernel, MMLinearLayerConfig], Outcome]

CHECKS: dict[str, tuple[Check, int | None]] = {
    "check_refusals": (check_refusals, None),
    "check_contract": (check_contract, None),
    "check_numerics": (check_numerics, None),
    "check_packing": (check_packing, None),
    "check_nan_propagation": (check_nan_propagation, None),
    "check_batch_invariance": (check_batch_invariance, None),
    "check_experts": (check_experts, None),
    "check_opcheck": (check_opcheck, 3),
    "check_compile": (check_compile, 3),
}
"""The checks of one layer, each with the number of layers it is run on (None: all), because
opcheck and compiling take a second each. `check_answers`, of the class, comes before them."""


_OF_EXPERTS = ("check_refusals", "check_packing", "check_experts")
"""What is checked of a kernel that runs experts."""


def layers_for(
    check: str, subject: Subject, configs: Sequence[MMLinearLayerConfig], *, thorough: bool
) -> list[MMLinearLayerConfig]:
    """The layers that a check of `CHECKS` is run on: refused ones for ``check_refusals``."""
    kind = KERNEL_TYPES.get(subject.kernel_type)
    routed = kind is not None and kind.routed
    if check not in _OF_EXPERTS if routed else check == "check_experts":
        return []
    refused = check == "check_refusals"
    fitting = [config for config in configs if _claims(subject, config) is not refused]
    limit = CHECKS[check][1]
    return fitting if limit is None else spread(fitting, limit * (4 if thorough else 1))


def _claims(subject: Subject, config: MMLinearLayerConfig) -> bool | None:
    """Whether the kernel implements ``config``; None where it does not answer as it must."""
    try:
        able, _ = subject.can_implement(config)
    except Exception:  # `check_answers` tells
        return None
    return bool(able)


def check_kernel(
    kernel_class: type[LinearKernel[Any]],
    *,
    device: str = "cpu",
    spec: KernelSpec | None = None,
    configs: Sequence[MMLinearLayerConfig] | None = None,
    arithmetic: Arithmetic | None = None,
    tolerance: float | None = None,
    checks: Sequence[str] | None = None,
    thorough: bool = False,
    raise_on_failure: bool = True,
) -> ConformanceReport:
    """Run every check on every layer that the kernel implements.

    Args:
        kernel_class: the kernel.
        device: where to run it.
        spec: its declaration; None to look it up in the registry (see `Subject`).
        configs: the layers to ask it about; None for `conformance_configs`.
        arithmetic: how it computes; by default as the class says (`Arithmetic.of`).
        tolerance: of an ``APPROXIMATE`` kernel.
        checks: names from `CHECKS`; None for all.
        thorough: more layers.
        raise_on_failure: raise if a check fails, rather than only report it.

    Raises:
        ConformanceError: a check failed, or the kernel cannot run here; the text says all.
        ConfigError: the arguments contradict each other, or a check is not known.
    """
    arithmetic = arithmetic or Arithmetic.of(kernel_class)
    subject = Subject(kernel_class, device, spec, arithmetic, tolerance)
    unknown = set(checks or ()) - set(CHECKS)
    if unknown:
        raise ConfigError(f"no check is called {sorted(unknown)}; there are {', '.join(CHECKS)}")
    if configs is None:
        configs = conformance_configs(subject.kernel_type, thorough=thorough)
    report = ConformanceReport(subject, offered=len(configs))
    started = time.perf_counter()
    if (why := subject.unavailable()) is not None:
        raise subject.error("check_kernel", None, f"it cannot be run on {device!r} here: {why}")
    try:
        report.take("check_answers", check_answers(subject, configs))
    except ConformanceError as failure:
        report.take_failure(failure)
    report.claimed = sum(_claims(subject, config) is True for config in configs)
    for name, (check, _) in CHECKS.items():
        if checks is not None and name not in checks:
            continue
        for config in layers_for(name, subject, configs, thorough=thorough):
            try:
                report.take(name, check(subject, config))
            except ConformanceError as failure:
                report.take_failure(failure)
    report.seconds = time.perf_counter() - started
    if raise_on_failure:
        report.raise_if_failed()
    return report


def check_claimed(
    subject: Subject,
    configs: Sequence[MMLinearLayerConfig],
    how: Evidence | str,
    what: str,
) -> list[MMLinearLayerConfig]:
    """Check a kernel away from its hardware, with a stand-in for its package, say.

    Every layer that it implements is checked; the others must be refused in words and cannot be
    built. Unlike `check_kernel` it stops at the first failure, asks the class as it is set up now
    (a test's stand-in and `weighing` hold) and compiles with ``aot_eager``, without a compiler.

    Args:
        subject: the kernel, with a declaration by which it runs on ``subject.device``.
        configs: the layers to ask it about.
        how: an `Evidence`: ``contract``, ``stand-in``, ``compiled``.
        what: by what, in a few words (see `evidence`).

    Returns:
        The layers that it implements.

    Raises:
        ConformanceError: a check failed.
        ConfigError: the kernel implements none of ``configs``, or ``how`` is no evidence.
    """
    claimed = [c for c in configs if subject.kernel_class.can_implement(c)[0]]
    if not claimed:
        raise ConfigError(f"{subject.name} implements none of the {len(configs)} layers")
    with evidence(how, what):
        for config in claimed:
            check_contract(subject, config)
            check_numerics(subject, config)
            check_packing(subject, config)
            check_nan_propagation(subject, config)
        check_opcheck(subject, claimed[0])
        check_compile(subject, claimed[0], backend="aot_eager")
    for config in configs:
        if config not in claimed:
            check_refusals(subject, config)
    return claimed
