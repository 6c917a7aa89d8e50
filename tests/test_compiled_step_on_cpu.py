"""qcore-cpu's attention of one query in a model's compiled decoding step."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
import transformers
from qcore.models import compile_decoding, generate
from qcore.registry.discovery import discover, use_registry

pytest.importorskip("qcore_cpu", reason="needs qcore-cpu")


def _model(**sizes: Any) -> Any:
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = transformers.Gemma3TextConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=0,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
        **sizes,
    )
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_config(config).eval()


@pytest.mark.parametrize(("head_dim", "taken"), [(16, True), (8, False)])
@torch.inference_mode()
def test_in_a_compiled_step(head_dim: int, taken: bool) -> None:
    """Over a window that fills up; heads of a size that the op has not stay with torch."""
    ids = torch.arange(5, 12)[None]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}
    expected = _model(head_dim=head_dim).generate(ids, **options)
    model = _model(head_dim=head_dim)
    targets: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    compile_decoding(model, backend=backend)  # type: ignore[arg-type]
    plugin = EntryPoint("cpu", "qcore_cpu.plugin", "qcore.plugins")
    with use_registry(discover(found=[plugin])):
        assert torch.equal(generate(model, ids, **options), expected)
    own = torch.ops.qcore_cpu.one_query_attention.default
    assert targets.count(own) == (2 if taken else 0)
    theirs = torch.nn.functional.scaled_dot_product_attention
    assert targets.count(theirs) == (0 if taken else 2)
