"""``config.json`` of a checkpoint that was rounded, as compressed-tensors writes it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from qcore.quantize.choice import Choice
from qcore.quantize.config_groups import config_group, format_name

__all__ = ["FORMAT_VERSION", "written_config"]

FORMAT_VERSION = "0.19.0"
"""The release of compressed-tensors whose files these are like, field by field."""


def written_config(
    config: Mapping[str, Any], choice: Choice, *, searched: bool, observer: str
) -> dict[str, Any]:
    """The source's config with the quantization; untied if the head has its own weight now.

    Args:
        config: of the source.
        choice: what was rounded.
        searched: whether the weights' scales were chosen by the squared error.
        observer: with which the activations' scales were found.
    """
    layers = choice.layers
    result = copy.deepcopy(dict(config))
    if layers.head is not None and layers.head.name in choice.chosen:
        result["tie_word_embeddings"] = False
        text = result.get("text_config")
        if isinstance(text, dict) and "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    result["quantization_config"] = _quantization(choice, searched, observer)
    return result


def _quantization(choice: Choice, searched: bool, observer: str) -> dict[str, Any]:
    scheme, head_scheme, head = choice.scheme, choice.head_scheme, choice.layers.head
    ignored = {layer.name for layer in choice.kept}
    if head is not None and head.name not in choice.chosen:
        ignored.add(head.name)
    parts = [(["Linear"], scheme)]
    if head is not None and head.name in choice.chosen and head_scheme is not None:
        # Not every reader's head is a "Linear", so it is named. Names stand before classes:
        # compressed-tensors takes what comes after a match for a name that fits nothing.
        if head_scheme == scheme:
            parts = [([head.name, "Linear"], scheme)]
        else:
            parts.insert(0, ([head.name], head_scheme))
    groups = {
        f"group_{index}": config_group(part, targets, searched=searched, observer=observer)
        for index, (targets, part) in enumerate(parts)
    }
    formats = {format_name(part) for _, part in parts}
    return {
        "config_groups": groups,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": sorted(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": FORMAT_VERSION,
    }
