"""What this plugin changes in the graph of a compiled decoding step."""

from __future__ import annotations

from typing import Any

import torch

from qcore_cpu import library

__all__ = ["take_attention"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def take_attention(graph: torch.fx.GraphModule) -> None:
    """Attention of one query to ``csrc/attention.cpp``: torch's own treats it as one of many.

    Calls with a mask, with several texts, or on other devices stay as they are.
    """
    if library.refusal() is not None:
        return
    target = torch.nn.functional.scaled_dot_product_attention
    for node in graph.graph.find_nodes(op="call_function", target=target):
        options: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
        inputs = [options.get(name) for name in _NAMES[:3]]
        if not _is_plain(options) or not _fits(*(_value(node) for node in inputs)):
            continue
        scale = options.get("scale")
        if scale is None:
            scale = _value(inputs[0]).shape[-1] ** -0.5
        with graph.graph.inserting_before(node):
            op = torch.ops.qcore_cpu.one_query_attention.default
            new = graph.graph.call_function(op, (*inputs, scale))
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)


def _is_plain(options: dict[str, Any]) -> bool:
    """Whether every key may be seen and nothing is dropped."""
    return (
        options.get("attn_mask") is None
        and options.get("dropout_p", 0.0) == 0.0
        and options.get("is_causal", False) is False
        and isinstance(options.get("scale"), int | float | None)
    )


def _value(node: Any) -> Any:
    """What a node gives, as far as it is known; None for what is no node."""
    return node.meta.get("example_value") if isinstance(node, torch.fx.Node) else None


def _fits(query: Any, key: Any, value: Any) -> bool:
    """Whether the op takes such tensors. What is not known for good is asked for nothing."""
    tensors = (query, key, value)
    if not all(isinstance(t, torch.Tensor) and t.dim() == 4 for t in tensors):
        return False
    batch, heads, length, size = query.shape
    shared = key.shape[1]
    known = (batch, heads, length, size, shared)
    return (
        all(isinstance(number, int) for number in known)
        and batch == length == 1
        and size % 16 == 0
        and heads % shared == 0
        and query.dtype in _DTYPES
        and all(
            t.device.type == "cpu"
            and t.dtype == query.dtype
            and not t.requires_grad
            and (t.shape[0], t.shape[1], t.shape[3]) == (1, shared, size)
            for t in tensors[1:]
        )
        and not query.requires_grad
        and all(t.stride(3) == 1 for t in tensors[1:])
    )
