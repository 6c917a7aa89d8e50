"""Lists of layers that are not quantized, as most methods write them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["LayerList", "is_listed"]


class LayerList(tuple[str, ...]):
    """A list of entries for `is_listed`, with an index: a question costs no walk along the list."""

    def __new__(cls, entries: Iterable[str] = ()) -> LayerList:
        """Of some entries."""
        found = super().__new__(cls, entries)
        found.names = frozenset(entry.strip(".") for entry in found) - {""}
        found.lengths = sorted({name.count(".") + 1 for name in found.names})
        return found

    names: frozenset[str]
    lengths: list[int]


def is_listed(prefix: str, entries: LayerList) -> bool:
    """Whether ``prefix`` contains one of the entries as whole words between dots.

    ``lm_head``, ``model.layers.0`` and ``mlp.gate`` are such entries. Tools differ in what else
    they match; the checkpoint's tensors decide there (`QuantizationConfig.names_layers`).
    """
    words = prefix.split(".")
    return any(
        ".".join(words[at : at + length]) in entries.names
        for length in entries.lengths
        for at in range(len(words) - length + 1)
    )
