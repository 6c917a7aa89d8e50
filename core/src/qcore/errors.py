"""Every error that qcore raises on purpose.

All derive from `QcoreError`, so one ``except`` catches them; each also derives from the builtin
that fits (`ValueError`, `ImportError`), so code that never heard of qcore handles it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcore.selection.decision import Decision

__all__ = [
    "CheckpointError",
    "ConfigError",
    "KernelRefusedError",
    "MissingDependencyError",
    "NoKernelError",
    "QcoreError",
    "RegistrationError",
    "SettingsError",
    "TargetError",
    "UnknownQuantizationError",
    "UnsupportedQuantizationError",
    "WeightError",
]


class QcoreError(Exception):
    """Base of every error that qcore raises on purpose."""


class ConfigError(QcoreError, ValueError):
    """A layer config, scale description or kernel spec has a value that is not allowed."""


class TargetError(QcoreError, ValueError):
    """A target's text (``cuda:sm_90``) cannot be read."""


class SettingsError(QcoreError, ValueError):
    """An environment variable or a selection setting cannot be read."""


class RegistrationError(QcoreError, ValueError):
    """A kernel or method cannot be registered as given."""


class KernelRefusedError(QcoreError, ValueError):
    """A kernel was constructed, or forced, for a config that it does not implement."""


class NoKernelError(QcoreError, ValueError):
    """Selection found no kernel. The text is the whole decision, reason by reason."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.render())
        self.decision = decision


class WeightError(QcoreError, ValueError):
    """A layer's tensors are missing, or have a shape or dtype other than the config says."""


class CheckpointError(QcoreError, ValueError):
    """A checkpoint cannot be read: missing, truncated, unsafe or contradictory."""


class UnknownQuantizationError(CheckpointError):
    """The checkpoint names a quantization method that nobody registered."""


class UnsupportedQuantizationError(CheckpointError):
    """The method is known, but not with these parameters."""


class MissingDependencyError(QcoreError, ImportError):
    """An optional dependency is not installed. The text says which extra brings it."""
