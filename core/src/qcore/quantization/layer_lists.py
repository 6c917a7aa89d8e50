"""Lists of layers that are not quantized, as most methods write them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["is_listed"]


def is_listed(prefix: str, entries: Iterable[str]) -> bool:
    """Whether ``prefix`` contains one of the entries as whole words between dots.

    ``lm_head``, ``model.layers.0`` and ``mlp.gate`` are such entries. Tools differ in what else
    they match; the checkpoint's tensors decide there (`QuantizationConfig.names_layers`).
    """
    dotted = f".{prefix}."
    return any(f".{entry.strip('.')}." in dotted for entry in entries if entry.strip("."))
