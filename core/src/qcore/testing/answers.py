"""Checks of what a kernel class answers: `check_answers`, `check_refusals`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qcore.errors import KernelRefusedError
from qcore.layers.base import MMLinearLayerConfig
from qcore.registry.entry import check_kernel_class
from qcore.testing.configs import conformance_configs
from qcore.testing.outcome import Outcome
from qcore.testing.subject import Kernel, Subject, subject_of

__all__ = ["check_answers", "check_refusals"]

_CAPABILITIES = (None, 50, 75, 80, 89, 90, 100, 120)
_IN_WORDS = re.compile(r"[A-Za-z]{2,}\S*\s+\S*\w|\w\S*\s+\S*[A-Za-z]{2,}")


def check_answers(kernel: Kernel, configs: Sequence[MMLinearLayerConfig] | None = None) -> Outcome:
    """The class is a kernel of its type, and gives well-formed answers.

    ``is_supported`` and ``can_implement`` give ``(True, None)`` or ``(False, reason)``, never raise
    and never change their mind; a reason is in words; at least one config is implemented.

    Args:
        kernel: the class, or a `Subject`.
        configs: the layers to ask about; None for `conformance_configs`.

    Raises:
        ConformanceError: something of this is not so.
    """
    subject, check = subject_of(kernel), "check_answers"
    why = check_kernel_class(subject.kernel_class, getattr(subject.kernel_class, "kernel_type", ""))
    if why is not None:
        raise subject.error(check, None, why)
    if configs is None:
        configs = conformance_configs(subject.kernel_type)
    least = subject.kernel_class.get_min_capability()
    if not isinstance(least, int) or isinstance(least, bool):
        raise subject.error(check, None, f"get_min_capability() gives {least!r}, not an integer")
    for capability in _CAPABILITIES:
        question = f"is_supported({capability})"
        with subject.guarding(check, None, question):
            reply = subject.kernel_class.is_supported(capability)
        _check_answer(subject, None, question, reply)
    claimed = 0
    for config in configs:
        with subject.guarding(check, config, "can_implement"):
            reply = subject.can_implement(config)
            again = subject.can_implement(config)
        _check_answer(subject, config, "can_implement", reply)
        if reply != again:
            raise subject.error(
                check, config, f"can_implement gives {reply!r}, asked again {again!r}"
            )
        claimed += reply[0]
    if not claimed and subject.unavailable() is None:
        raise subject.error(check, None, f"it implements none of {len(configs)} layers")
    return Outcome()


def _check_answer(
    subject: Subject, config: MMLinearLayerConfig | None, question: str, reply: object
) -> None:
    check = "check_answers"
    allowed = "(True, None) or (False, reason)"
    if not (isinstance(reply, tuple) and len(reply) == 2 and isinstance(reply[0], bool)):
        raise subject.error(check, config, f"{question} gives {reply!r}; it must give {allowed}")
    able, reason = reply
    if able and reason is not None:
        raise subject.error(check, config, f"{question} gives {reply!r}: able, but with a reason")
    if not able and not (isinstance(reason, str) and _IN_WORDS.search(reason)):
        raise subject.error(
            check, config, f"{question} refuses with the reason {reason!r}; it must be in words"
        )


def check_refusals(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """A refused config cannot be built: the constructor raises, and gives the reason.

    Raises:
        ConformanceError: ``from_config`` gives an instance, or raises something else.
    """
    subject, check = subject_of(kernel), "check_refusals"
    with subject.guarding(check, config, "can_implement"):
        able, reason = subject.can_implement(config)
    if able:
        return Outcome(not_run="the kernel implements the layer")
    for question in ("from_config", "the constructor"):
        make = subject.kernel_class
        build = make.from_config if question == "from_config" else make
        try:
            build(config)
        except KernelRefusedError as error:
            if str(reason) not in str(error):
                problem = f"{question} raises {str(error)!r}, without the reason {reason!r}"
                raise subject.error(check, config, problem) from error
        except Exception as error:
            problem = f"{question} raises {type(error).__name__}, not KernelRefusedError: {error}"
            raise subject.error(check, config, problem) from error
        else:
            problem = f"can_implement refuses it ({reason}), but {question} gives an instance"
            raise subject.error(check, config, problem)
    return Outcome()
