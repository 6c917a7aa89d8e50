"""The settings of selection, and the only place that reads them from the environment.

========================  =====================================================================
variable                  meaning
========================  =====================================================================
QCORE_DISABLED_KERNELS    kernel class names, separated by commas, that must not be chosen
VLLM_DISABLED_KERNELS     the same; both lists count
QCORE_DISABLED_PLUGINS    plugins (entry point or distribution names) that are not even imported
QCORE_LINEAR_BACKEND      prefer one backend: ``auto``, ``cutlass``; per kernel type:
                          ``int8=zentorch,mp=cpu``; both: ``cpu,int8=zentorch``
QCORE_FORCE_KERNEL        class names to try before all others, one for each kernel type
QCORE_STRICT              1: a layer that the asked-for backend or kernel cannot run is an error;
                          0 (default): another kernel runs it, and the decision says so
QCORE_BATCH_INVARIANT     1: only kernels whose rows do not depend on the rest of the batch
VLLM_BATCH_INVARIANT      the same; either one switches it on
QCORE_NUMERICS            ``exact`` (default) or ``approximate``: whether kernels may round what
                          the checkpoint does not round
QCORE_KERNEL_PRIORITY     ``Name=700,Other=10``: other priorities than the declared ones
========================  =====================================================================

They are read at each selection, so a change takes effect at once; QCORE_DISABLED_PLUGINS is read
when plugins are discovered, once in a process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from qcore.errors import SettingsError

__all__ = ["VARIABLES", "Settings", "disabled_plugins"]

VARIABLES = (
    "QCORE_DISABLED_KERNELS",
    "VLLM_DISABLED_KERNELS",
    "QCORE_LINEAR_BACKEND",
    "QCORE_FORCE_KERNEL",
    "QCORE_STRICT",
    "QCORE_BATCH_INVARIANT",
    "VLLM_BATCH_INVARIANT",
    "QCORE_NUMERICS",
    "QCORE_KERNEL_PRIORITY",
)
"""Every variable that selection reads."""


@dataclass(frozen=True)
class Settings:
    """What a user may ask of selection.

    Attributes:
        disabled_kernels: class names.
        linear_backend: the backend for all kernel types; ``auto`` for no preference.
        linear_backend_per_type: (kernel type, backend) pairs that go before it.
        force_kernel: class names to try first.
        strict: whether an asked-for backend or kernel that cannot run a layer is an error.
        batch_invariant: whether only batch-invariant kernels may run.
        approximate: whether kernels may round what the config does not round.
        priorities: (class name, priority) pairs in place of the declared ones.
        sources: which variable a value came from, for messages.
    """

    disabled_kernels: frozenset[str] = frozenset()
    linear_backend: str = "auto"
    linear_backend_per_type: tuple[tuple[str, str], ...] = ()
    force_kernel: tuple[str, ...] = ()
    strict: bool = False
    batch_invariant: bool = False
    approximate: bool = False
    priorities: tuple[tuple[str, int], ...] = ()
    sources: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises:
            SettingsError: a variable's value cannot be read.
        """
        env = os.environ if environ is None else environ
        return _parse(tuple(env.get(name) for name in VARIABLES))

    def backend_for(self, kernel_type: str) -> str:
        """The backend asked for; ``auto`` if none."""
        return dict(self.linear_backend_per_type).get(kernel_type, self.linear_backend)

    def source(self, field_name: str) -> str:
        """The variable that a field was read from, or the field's name."""
        return dict(self.sources).get(field_name, field_name)


def disabled_plugins(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """``QCORE_DISABLED_PLUGINS``."""
    env = os.environ if environ is None else environ
    return frozenset(_names(env.get("QCORE_DISABLED_PLUGINS")))


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@lru_cache(maxsize=64)
def _parse(values: tuple[str | None, ...]) -> Settings:
    raw = dict(zip(VARIABLES, values, strict=True))
    backend, per_type = _backends(raw["QCORE_LINEAR_BACKEND"])
    disabled = [n for n in ("QCORE_DISABLED_KERNELS", "VLLM_DISABLED_KERNELS") if raw[n]]
    invariant = [n for n in ("QCORE_BATCH_INVARIANT", "VLLM_BATCH_INVARIANT") if _flag(raw, n)]
    return Settings(
        disabled_kernels=frozenset(name for n in disabled for name in _names(raw[n])),
        linear_backend=backend,
        linear_backend_per_type=per_type,
        force_kernel=tuple(_names(raw["QCORE_FORCE_KERNEL"])),
        strict=_flag(raw, "QCORE_STRICT"),
        batch_invariant=bool(invariant),
        approximate=_numerics(raw["QCORE_NUMERICS"]),
        priorities=_priorities(raw["QCORE_KERNEL_PRIORITY"]),
        sources=(
            ("disabled_kernels", " and ".join(disabled)),
            ("batch_invariant", " and ".join(invariant)),
            ("linear_backend", "QCORE_LINEAR_BACKEND"),
            ("force_kernel", "QCORE_FORCE_KERNEL"),
            ("priorities", "QCORE_KERNEL_PRIORITY"),
        ),
    )


def _flag(raw: Mapping[str, str | None], name: str) -> bool:
    text = (raw[name] or "").strip().lower()
    if text in ("", "0", "false", "no", "off"):
        return False
    if text in ("1", "true", "yes", "on"):
        return True
    raise SettingsError(f"{name} is {raw[name]!r}; allowed: 0 or 1")


def _numerics(text: str | None) -> bool:
    value = (text or "exact").strip().lower()
    if value not in ("exact", "approximate"):
        raise SettingsError(f"QCORE_NUMERICS is {text!r}; allowed: exact, approximate")
    return value == "approximate"


def _backends(text: str | None) -> tuple[str, tuple[tuple[str, str], ...]]:
    general, per_type = "auto", {}
    for part in _names(text):
        kind, equals, backend = (piece.strip() for piece in part.partition("="))
        if not equals:
            general = kind
        elif kind and backend:
            per_type[kind] = backend
        else:
            raise SettingsError(
                f"QCORE_LINEAR_BACKEND has {part!r}; write a backend, or type=backend"
            )
    return general, tuple(sorted(per_type.items()))


def _priorities(text: str | None) -> tuple[tuple[str, int], ...]:
    found = {}
    for part in _names(text):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            found[name] = int(value)
        except ValueError:
            raise SettingsError(
                f"QCORE_KERNEL_PRIORITY has {part!r}; write KernelClassName=integer"
            ) from None
    return tuple(sorted(found.items()))
