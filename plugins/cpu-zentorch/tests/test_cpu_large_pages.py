"""Small weights that lie side by side."""

from __future__ import annotations

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from qcore_cpu import large_pages
from qcore_cpu.large_pages import in_large_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has such pages")

DTYPES = (torch.int32, torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(autouse=True)
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Fresh memory; the chunks that are mapped for it."""
    chunks: list[weakref.ref[Any]] = []
    original = large_pages._mapped

    def watched(size: int) -> Any:
        memory, begin = original(size)
        chunks.append(weakref.ref(memory))
        return memory, begin

    monkeypatch.setattr(large_pages, "_mapped", watched)
    monkeypatch.setattr(large_pages, "_memory", large_pages._Memory())
    return chunks


def some(count: int, most: int = 5000) -> dict[str, torch.Tensor]:
    """Of every dtype, with every byte another."""
    return {
        str(i): torch.randint(256, (4 * int(n),), dtype=torch.uint8).view(DTYPES[i % 6]).view(2, -1)
        for i, n in enumerate(torch.randint(1, most, (count,)) * 2)
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the bit; NaN too."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    )


def test_many(mapped: list[Any]) -> None:
    """None lies in another's memory; each begins a line and has a storage of its size."""
    tensors = some(1500)
    found = in_large_pages(tensors, packed="0")
    assert len(mapped) > 2
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in found.values())
    assert all(begin % 64 == 0 for begin, _ in spans)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in found.values())
    bytes_used = sum(t.nbytes for t in tensors.values())
    assert len(mapped) <= -(-(bytes_used + 64 * len(tensors)) // large_pages._CHUNK) + 1


def test_freed(mapped: list[Any]) -> None:
    """A chunk goes when the last of its tensors goes, but for the one that is given out now."""
    found = in_large_pages(some(1500), packed="")
    count = len(mapped)
    last = found["3"].clone(), found["3"]
    del found
    gc.collect()
    assert sum(chunk() is not None for chunk in mapped) == 2
    assert same(*last)
    del last
    gc.collect()
    assert sum(chunk() is not None for chunk in mapped) == 1
    assert len(mapped) == count


def test_large(mapped: list[Any]) -> None:
    """Gets memory of its own, unless it is the packed weight, which has that already."""
    tensors = {
        name: torch.randint(256, (9 << 20,), dtype=torch.uint8) for name in ("packed", "scale")
    }
    found = in_large_pages(tensors, packed="packed")
    assert found["packed"] is tensors["packed"]
    assert torch.equal(found["scale"], tensors["scale"])
    assert found["scale"].data_ptr() % large_pages._PAGE == 0
    del found
    gc.collect()
    assert all(chunk() is None for chunk in mapped)


def test_threads() -> None:
    layers = [some(40) for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda layer: in_large_pages(layer, packed=""), layers))
    for layer, moved in zip(layers, found, strict=True):
        assert all(same(moved[name], tensor) for name, tensor in layer.items())


def test_in_inference_mode() -> None:
    """Memory is shared by what is made in inference mode and what is not."""
    with torch.inference_mode():
        first = in_large_pages({"a": torch.ones(100)}, packed="")
    second = in_large_pages({"a": torch.zeros(100)}, packed="")
    assert first["a"].sum() == 100
    assert not second["a"].is_inference()


def test_what_stays() -> None:
    tensors = {
        "empty": torch.empty(0),
        "meta": torch.empty(9, device="meta"),
        "strided": torch.zeros(8, 8)[:, ::2],
    }
    found = in_large_pages(tensors, packed="")
    assert all(found[name] is tensor for name, tensor in tensors.items())


def test_without_such_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pages, "_AVAILABLE", False)
    tensors = some(3)
    found = in_large_pages(tensors, packed="")
    assert all(found[name] is tensor for name, tensor in tensors.items())
