"""`Fields`: read a ``quantization_config`` field by field, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.quantization.json_text import shown

__all__ = ["Fields"]

_MISSING = object()


class Fields:
    """The fields of a JSON object.

    Args:
        values: the object.
        where: its name in messages.

    Raises:
        CheckpointError: ``values`` is not an object.
    """

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{where} is {shown(values)}; it must be a JSON object")
        self.values: Mapping[str, Any] = values
        self.where = where if len(where) <= 300 else f"{where[:297]}..."

    def wrong(self, name: str, needed: str) -> CheckpointError:
        """The error for a value that means nothing."""
        return CheckpointError(
            f"{self.where}: {name} is {shown(self.values.get(name))}; it must be {needed}"
        )

    def unsupported(self, name: str, supported: str) -> UnsupportedQuantizationError:
        """The error for a value that is not supported."""
        return UnsupportedQuantizationError(
            f"{self.where}: {name} is {shown(self.values.get(name))}, which is not supported; "
            f"supported: {supported}"
        )

    def _find(self, names: tuple[str, ...], default: object) -> tuple[str, Any]:
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        if default is _MISSING:
            raise CheckpointError(f"{self.where}: {' or '.join(names)} is missing")
        return names[0], default

    def integer(
        self, *names: str, allowed: Collection[int] | None = None, default: object = _MISSING
    ) -> int:
        """An integer; the first of several names that is there."""
        name, value = self._find(names, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "an integer")
        if allowed is not None and value not in allowed:
            raise self.unsupported(name, ", ".join(map(str, allowed)))
        return value

    def group_size(self, *names: str, default: object = _MISSING) -> int:
        """-1 for one group of all inputs, or a positive integer."""
        name, value = self._find(names, default)
        if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
            raise self.wrong(name, "a positive integer, or -1 for one group of all inputs")
        if value >= 2**31:
            raise self.wrong(name, "below 2**31; -1 stands for one group of all inputs")
        return value

    def boolean(self, name: str, default: object = _MISSING) -> bool:
        """A boolean."""
        _, value = self._find((name,), default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(
        self, *names: str, allowed: Collection[str] | None = None, default: object = _MISSING
    ) -> str:
        """A string, folded to lower case where only some are ``allowed``."""
        name, value = self._find(names, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        if allowed is None:
            return value
        if value.lower() not in allowed:
            raise self.unsupported(name, ", ".join(allowed))
        return value.lower()

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty if it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def refuse(self, *names: str, why: str) -> None:
        """Raise unless the named fields are missing, null, false or empty."""
        for name in names:
            if self.values.get(name):
                raise UnsupportedQuantizationError(
                    f"{self.where}: {name} is {shown(self.values[name])}: {why}"
                )
