"""A report of what the kit checked: ``QCORE_TEST_REPORT=FILE pytest plugins/NAME/tests``.

Every check of the kit notes itself, whichever test calls it; when the process ends, the file says
for each kernel where it ran, which checks, on how many layers, and what failed. Such files are
committed in ``tests/hardware-reports``; docs/hardware.md is made of them.

A kernel that runs on the hardware that it is declared for has been *executed*. Where a test runs it
otherwise, `evidence` says how::

    with evidence("contract", "a stand-in with the signatures of FlashInfer 0.7"):
        check_numerics(subject, config)

or ``QCORE_TEST_EVIDENCE="stand-in: Triton's interpreter"`` does for the whole process. What no
check of the kit has seen (a compiler's output, say) is noted with `note_run`.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import torch

from qcore.errors import ConfigError, QcoreError
from qcore.facts.target import Target
from qcore.registry.spec import Evidence
from qcore.testing.outcome import Outcome
from qcore.testing.subject import ConformanceError, Subject, subject_of

__all__ = ["FORMAT", "evidence", "note_run", "recorded", "report"]

FORMAT = 1
VARIABLE = "QCORE_TEST_REPORT"
EVIDENCE = "QCORE_TEST_EVIDENCE"

P = ParamSpec("P")

_how: ContextVar[tuple[Evidence, str] | None] = ContextVar("qcore_evidence", default=None)
_runs: dict[tuple[str, str, str, str], dict[str, Any]] = {}


@contextmanager
def evidence(how: Evidence | str, what: str) -> Iterator[None]:
    """Say how kernels are run in this context, for the report.

    Args:
        how: ``stand-in``, ``contract`` or another `Evidence`.
        what: which stand-in, in a few words.

    Raises:
        ConfigError: there is no such evidence, or it is not said what it is.
    """
    token = _how.set((_known(how), _said(what)))
    try:
        yield
    finally:
        _how.reset(token)


def note_run(
    kernel: str,
    how: Evidence | str,
    what: str,
    *,
    target: str = "",
    ok: bool = True,
    **facts: Any,
) -> None:
    """Note evidence that is no check of the kit.

    Args:
        kernel: the class's name.
        how: an `Evidence`, ``compiled`` for instance.
        what: by what, in a few words: ``clang 22, 3 MFMA instructions, no spills``.
        target: for which target (``rocm:gfx942``); "" for whatever the kernel is declared for.
        ok: whether it was as it should be.
        facts: plain values for the file.

    Raises:
        ConfigError: there is no such evidence, or it is not said what it is.
        TargetError: the target cannot be read.
    """
    if target:
        target = str(Target.parse(target))
    run = _run(kernel, _known(how), _said(what), target)
    run.update(facts)
    run["ok"] = run["ok"] and ok


def recorded(check: Callable[P, Outcome]) -> Callable[P, Outcome]:
    """A check of the kit, noting what it finds of the kernel that is its first argument."""
    name = check.__name__

    @wraps(check)
    def noting(*args: P.args, **keywords: P.kwargs) -> Outcome:
        kernel: Any = args[0] if args else keywords["kernel"]
        try:
            outcome = check(*args, **keywords)
        except ConformanceError as error:
            _note(subject_of(kernel), name, None, error)
            raise
        _note(subject_of(kernel), name, outcome, None)
        return outcome

    return noting


def report() -> dict[str, Any]:
    """What was noted so far in this process."""
    return {
        "format": FORMAT,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": Target.current().describe(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "runs": [_runs[key] for key in sorted(_runs)],
    }


def _known(how: Evidence | str) -> Evidence:
    try:
        return Evidence(how)
    except ValueError:
        allowed = ", ".join(str(value) for value in Evidence)
        raise ConfigError(f"how is {how!r}; it must be one of {allowed}") from None


def _said(what: str) -> str:
    if not what.strip():
        raise ConfigError("what is empty; it must say in a few words by what the kernel was run")
    return what.strip()


def _said_for_all() -> tuple[Evidence, str] | None:
    text = os.environ.get(EVIDENCE, "")
    if not text:
        return None
    how, _, what = text.partition(":")
    return _known(how.strip()), _said(what)


def _note(
    subject: Subject, check: str, outcome: Outcome | None, error: ConformanceError | None
) -> None:
    if not os.environ.get(VARIABLE):
        return
    said = _how.get() or _said_for_all()
    try:
        target = subject.target()
    except QcoreError:
        return  # nothing was run
    how, what = said or (None, target.describe())
    run = _run(subject.name, how, what, "" if said else str(target))
    run["platform"] = str(target.platform)
    counts = run.setdefault("checks", {}).setdefault(check, {"runs": 0, "failed": 0, "not_run": 0})
    counts["not_run" if outcome is not None and outcome.not_run else "runs"] += 1
    if error is not None:
        counts["failed"] += 1
        run["ok"] = False
        run.setdefault("failures", []).append(str(error)[:500])
    if outcome is not None and outcome.worst is not None:
        run["worst_ratio"] = max(run.get("worst_ratio", 0.0), round(outcome.worst.ratio, 4))


def _run(kernel: str, how: Evidence | None, what: str, target: str) -> dict[str, Any]:
    key = (kernel, str(how or ""), what, target)
    if not _runs:
        atexit.register(_write)
    fresh = {"kernel": kernel, "how": str(how) if how else None, "what": what, "target": target}
    return _runs.setdefault(key, {**fresh, "ok": True})


def _write() -> None:
    path = os.environ.get(VARIABLE)
    if path and _runs:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report(), indent=1) + "\n", encoding="utf-8")
