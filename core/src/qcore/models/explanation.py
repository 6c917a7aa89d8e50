"""`explain`: which kernel runs each quantized layer of a model, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcore.models.load import NOTES
from qcore.quantization.kernel_layer import KernelLayer
from qcore.selection.decision import Decision

__all__ = ["Explanation", "ExplanationRow", "explain", "table"]

_HEAD = ("layer", "K x N", "scheme", "kernel", "why")


@dataclass(frozen=True)
class ExplanationRow:
    """One layer.

    Attributes:
        layer: its name.
        decision: how its kernel was chosen.
    """

    layer: str
    decision: Decision

    @property
    def kernel(self) -> str:
        """The kernel's class name; "none" where none can run the layer."""
        return self.decision.kernel_name or "none"

    @property
    def scheme(self) -> str:
        """The layer's config in a few words."""
        return self.decision.config.describe()

    @property
    def shape(self) -> str:
        """``4096 x 11008``."""
        return f"{self.decision.config.in_features} x {self.decision.config.out_features}"

    @property
    def reason(self) -> str:
        """Why this kernel."""
        return self.decision.reason

    def cells(self) -> tuple[str, ...]:
        """What the table shows after the layer's name."""
        return (self.shape, self.scheme, self.kernel, self.reason)


@dataclass(frozen=True)
class Explanation:
    """The kernels of a model. ``str()`` of it is a table with a line for layers that are alike.

    Attributes:
        rows: a row for each quantized layer, in the model's order.
        notes: what else the user should know.
    """

    rows: tuple[ExplanationRow, ...]
    notes: tuple[str, ...] = ()

    def render(self, *, per_layer: bool = False) -> str:
        """The table.

        Args:
            per_layer: give each layer a line.
        """
        if not self.rows:
            return "\n".join(["no quantized layers", *(f"note: {note}" for note in self.notes)])
        lines = [(row.layer, *row.cells()) for row in self.rows] if per_layer else self._grouped()
        shown = [table([_HEAD, *lines]), *(f"note: {note}" for note in self._all_notes())]
        return "\n".join(shown)

    def _grouped(self) -> list[tuple[str, ...]]:
        groups: dict[tuple[str, ...], int] = {}
        for row in self.rows:
            key = (layer_pattern(row.layer), *row.cells())
            groups[key] = groups.get(key, 0) + 1
        return [
            (f"{name} x{count}" if count > 1 else name, *cells)
            for (name, *cells), count in groups.items()
        ]

    def _all_notes(self) -> list[str]:
        decided = [note for row in self.rows for note in row.decision.notes]
        return list(dict.fromkeys([*self.notes, *decided]))

    def __str__(self) -> str:
        return self.render()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "layers": [{"layer": row.layer, **row.decision.to_dict()} for row in self.rows],
            "notes": self._all_notes(),
        }


def explain(model: torch.nn.Module) -> Explanation:
    """Which kernel runs each quantized layer of ``model``, and why."""
    rows = [
        ExplanationRow(name, module.decision)
        for name, module in model.named_modules()
        if isinstance(module, KernelLayer)
    ]
    return Explanation(tuple(rows), tuple(getattr(model, NOTES, ())))


def layer_pattern(name: str) -> str:
    """The name with ``*`` for each number between dots: ``model.layers.*.mlp.down_proj``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def table(rows: Sequence[Iterable[str]]) -> str:
    """Rows of cells as text, aligned; the last column is not padded."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in cells
    )
