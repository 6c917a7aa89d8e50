"""one_query_attention against float64, and which calls in a graph become it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qcore_cpu.decoding import take_attention

Tensor = torch.Tensor
HALF_ULP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return torch.ops.qcore_cpu.one_query_attention(query, keys, values, scale)  # type: ignore[no-any-return]


def check(found: Tensor, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> None:
    """Within what float32 sums and the rounding of the result may be off."""
    group = query.shape[1] // keys.shape[1]
    shared = (t.double().repeat_interleave(group, 1) for t in (keys, values))
    q, k, v = query.double(), *shared
    weights = torch.softmax(q @ k.transpose(2, 3) * scale, -1)
    expected = weights @ v
    u = HALF_ULP[torch.float32]
    size, length = k.shape[3], k.shape[2]
    # A score is a product with a rounded query, then size / 16 sums in a lane and 4 of lanes.
    score = (size / 16 + 6) * u * scale * (q.abs() @ k.abs().transpose(2, 3)).amax(-1, keepdim=True)
    # A weight has its score's error and the largest's, and exp's; then there is their sum.
    bound = (torch.expm1(2 * score) + (2 * length + 8) * u) * (weights @ v.abs())
    bound = bound + HALF_ULP[query.dtype] * expected.abs() + 2.0**-25
    assert found.dtype == query.dtype
    assert found.shape == query.shape
    assert bool(((found.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize(
    ("heads", "shared", "length", "size"),
    [
        (4, 1, 1, 256),
        (4, 1, 300, 256),
        (1, 1, 17, 16),
        (3, 1, 33, 48),
        (8, 8, 600, 64),
        (6, 2, 129, 80),
        (7, 1, 500, 128),
        (40, 8, 70, 128),
    ],
)
def test_against_float64(
    isa: str, heads: int, shared: int, length: int, size: int, dtype: torch.dtype
) -> None:
    """Keys and values lie in buffers with room for more."""
    query = torch.randn(1, heads, 1, size, dtype=dtype)
    keys, values = torch.full((2, 1, shared, length + 5, size), torch.nan, dtype=dtype)
    keys[:, :, :length].normal_()
    values[:, :, :length].normal_()
    keys, values = keys[:, :, :length], values[:, :, :length]
    found = attend(query, keys, values, size**-0.5)
    check(found, query, keys, values, size**-0.5)


def test_the_threads_do_not_matter() -> None:
    query, keys = torch.randn(1, 8, 1, 64), torch.randn(1, 2, 900, 64)
    found = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(attend(query, keys, keys, 0.1))
    assert all(torch.equal(found[0], other) for other in found)


def test_large_scores_and_nan() -> None:
    query, keys, values = (
        torch.randn(1, 2, 1, 32),
        torch.randn(1, 1, 40, 32),
        torch.randn(1, 1, 40, 32),
    )
    check(attend(query, keys, values, 1000.0), query, keys, values, 1000.0)
    keys[0, 0, 7, 3] = torch.nan
    assert bool(attend(query, keys, values, 1.0).isnan().all())


def test_layouts() -> None:
    """Heads next to each other, as a projection gives them; a query that is not dense."""
    query = torch.randn(1, 4, 1, 64)[..., ::2]
    keys, values = torch.randn(2, 1, 50, 2, 32).transpose(2, 3)
    check(attend(query, keys, values, 0.2), query, keys, values, 0.2)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 2, 2, 32), (1, 2, 9, 32), (1, 2, 9, 32)), "query has shape"),
        (((1, 2, 1, 24), (1, 2, 9, 24), (1, 2, 9, 24)), "multiple of 16"),
        (((1, 3, 1, 32), (1, 2, 9, 32), (1, 2, 9, 32)), "3 heads and keys has 2"),
        (((1, 2, 1, 32), (1, 2, 9, 16), (1, 2, 9, 32)), "keys has shape"),
        (((1, 2, 1, 32), (1, 2, 9, 32), (1, 2, 8, 32)), "values has shape"),
        (((1, 2, 1, 32), (1, 2, 0, 32), (1, 2, 0, 32)), "keys has shape"),
    ],
)
def test_bad_shapes(shapes: tuple[tuple[int, ...], ...], words: str) -> None:
    query, keys, values = (torch.randn(shape) for shape in shapes)
    with pytest.raises(RuntimeError, match=words):
        attend(query, keys, values, 1.0)


def test_bad_dtypes() -> None:
    query, keys = torch.randn(1, 2, 1, 32), torch.randn(1, 2, 9, 32)
    with pytest.raises(RuntimeError, match="values is Half"):
        attend(query, keys, keys.half(), 1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": torch.zeros(1, 1, 1, 9)},
        {"is_causal": True},
        {"dropout_p": 0.5},
    ],
)
def test_what_stays(options: dict[str, Any]) -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    graph = torch.fx.symbolic_trace(Module())
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            length = 1 if node.name == "q" else 9
            node.meta["example_value"] = torch.zeros(1, 2, length, 32)
    before = [node.target for node in graph.graph.nodes]
    take_attention(graph)
    assert [node.target for node in graph.graph.nodes] == before
