"""Scales of a quantized KV cache: recognised, and not applied.

qcore replaces linear layers; the KV cache is the engine's, and transformers keeps it in the model's
dtype. A checkpoint that was calibrated for an FP8 cache loses nothing by that but memory, so it
loads, and a note says so.
"""

from __future__ import annotations

import re

__all__ = ["KV_CACHE_SCALES", "is_kv_cache_scale", "kv_cache_note"]

KV_CACHE_SCALES = "scales of a quantized KV cache, which stays in the model's dtype"
"""What `QuantizationConfig.unapplied` says of them."""

# self_attn.k_scale (compressed-tensors, vLLM), self_attn.k_proj.k_scale (ModelOpt),
# self_attn.k_proj.output_scale (AutoFP8), self_attn.attn.k_scale, self_attn.kv_scale.
_NAME = re.compile(
    r".*(attn|attention|mixer)\b.*\.("
    r"(q|k|v|kv|prob)_scale|(q|k|v)_zero_point|[qkv]_proj\.output_scale|prob_output_scale)"
)


def is_kv_cache_scale(name: str) -> bool:
    """Whether a tensor of this name is one of them."""
    return _NAME.fullmatch(name) is not None


def kv_cache_note(asked: object) -> str:
    """The note for a config that asks for a quantized KV cache.

    Args:
        asked: what it says.
    """
    return f"the config asks for a quantized KV cache ({asked}); it stays in the model's dtype"
