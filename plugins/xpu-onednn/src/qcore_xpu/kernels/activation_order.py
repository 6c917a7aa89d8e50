"""Layers whose inputs are in groups by ``g_idx``."""

from __future__ import annotations

import torch
from qcore.layers.mixed_precision import MPLinearLayerConfig

__all__ = ["order_of_groups", "refuse_order"]


def refuse_order(config: MPLinearLayerConfig) -> str | None:
    """Why this layer's activation order is not implemented; None if it is, or there is none."""
    if not config.has_g_idx:
        return None
    K, _ = config.partition_weight_shape
    if config.partition_weight_shape[0] != config.full_weight_shape[0]:
        return "g_idx of a part of a layer is not implemented"
    if config.num_groups > 1 and K % config.group_size:
        return f"g_idx with K={K} and groups of {config.group_size}; whole groups only"
    return None


def order_of_groups(config: MPLinearLayerConfig, g_idx: torch.Tensor) -> torch.Tensor | None:
    """The order that puts inputs into that of their groups; None where groups are not equal.

    Those of GPTQ's files are. Files may assign inputs to groups as they like, and then each input
    needs a scale of its own.
    """
    order = torch.argsort(g_idx.long(), stable=True)
    expected = torch.arange(config.in_features, device=g_idx.device) // config.group_size
    return order if torch.equal(g_idx.long()[order], expected) else None
