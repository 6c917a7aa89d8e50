"""Match layers against compressed-tensors' ``targets`` and ``ignore`` lists.

An entry is a layer's name, ``re:`` and a regular expression that matches from the name's start, or
the name of a class that the layer is an instance of.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qcore.quantization.name_patterns import NamePattern, compile_pattern

__all__ = ["Targets"]


class Targets:
    """A list of targets.

    Args:
        entries: the list.
        where: its name in messages.

    Raises:
        CheckpointError: an entry after ``re:`` is no regular expression.
    """

    def __init__(self, entries: Iterable[str], where: str) -> None:
        self.names: set[str] = set()
        self.patterns: list[NamePattern] = []
        for entry in entries:
            if entry.startswith("re:"):
                self.patterns.append(compile_pattern(entry[3:], where))
            else:
                self.names.add(entry)

    def rank(self, layer: torch.nn.Module, prefix: str) -> int | None:
        """How closely the list names a layer: 0 by name, 1 by pattern, 2 by class, None not."""
        if prefix in self.names:
            return 0
        if any(pattern.match(prefix) for pattern in self.patterns):
            return 1
        return 2 if any(c.__name__ in self.names for c in type(layer).__mro__) else None
