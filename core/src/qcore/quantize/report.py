"""`QuantizeReport`: what was quantized, what was not and why, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["KeptLayer", "QuantizeReport", "QuantizedLayer", "size_text"]


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer that was rounded.

    Attributes:
        name: of the module.
        scheme: to what.
        shape: (N, K).
        relative_error: ``|w - rounded| / |w|``, in the 2-norm.
    """

    name: str
    scheme: str
    shape: tuple[int, int]
    relative_error: float


@dataclass(frozen=True)
class KeptLayer:
    """A layer that could have been quantized and was not.

    Attributes:
        name: of the module.
        reason: why not.
        asked_for: whether the caller wanted it so.
    """

    name: str
    reason: str
    asked_for: bool


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize_checkpoint` did.

    Attributes:
        source: the float checkpoint.
        dest: the quantized one.
        layers: what was rounded.
        kept: layers that stay in float.
        notes: what else the user should know.
        bytes_before: of all tensors.
        bytes_after: of all tensors.
        shards: weight files that were written.
        seconds: it took.
    """

    source: Path
    dest: Path
    layers: tuple[QuantizedLayer, ...]
    kept: tuple[KeptLayer, ...]
    notes: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    shards: int
    seconds: float

    @property
    def worst(self) -> QuantizedLayer:
        """The layer with the greatest relative error."""
        return max(self.layers, key=lambda layer: layer.relative_error)

    def render(self) -> str:
        """The report, as text for a person."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.scheme] = counts.get(layer.scheme, 0) + 1
        errors = sorted(layer.relative_error for layer in self.layers)
        schemes = ", ".join(f"{count} {scheme}" for scheme, count in counts.items())
        part = self.bytes_after / self.bytes_before
        rows = [
            ("written", f"{self.dest} ({self.shards} file{'s' if self.shards != 1 else ''})"),
            ("layers", schemes),
            (
                "size",
                f"{size_text(self.bytes_before)} -> {size_text(self.bytes_after)} ({part:.0%})",
            ),
            (
                "error",
                f"relative, median {errors[len(errors) // 2]:.4f}, "
                f"worst {errors[-1]:.4f} in {self.worst.name}",
            ),
            ("time", f"{self.seconds:.1f} s"),
        ]
        lines = [f"{name:<8} {text}" for name, text in rows]
        lines += [f"kept     {kept.name}: {kept.reason}" for kept in self.kept]
        lines += [f"note     {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        plain.update(source=str(self.source), dest=str(self.dest))
        for layer in plain["layers"]:
            layer["shape"] = list(layer["shape"])
        return plain


def size_text(count: int) -> str:
    """``1.2 GiB``."""
    size, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
