"""Launches that run at the same time: on streams, and in captured graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["assert_same_at_once"]


def assert_same_at_once(
    calls: Sequence[Callable[[], torch.Tensor]], wanted: Sequence[torch.Tensor], rounds: int = 20
) -> None:
    """Each call, on a stream of its own and in a graph replayed there, gives what is wanted."""
    streams = [torch.cuda.Stream() for _ in calls]
    graphs = []
    for call, stream in zip(calls, streams, strict=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outs = [call() for _ in range(4)]
        graphs.append((graph, outs))
    torch.cuda.synchronize()
    for _ in range(rounds):
        found: list[list[torch.Tensor]] = []
        for call, stream, (graph, outs) in zip(calls, streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                found.append([call() for _ in range(3)])
                graph.replay()
                found.append(outs)
        torch.cuda.synchronize()
        for i, outs in enumerate(found):
            assert all(torch.equal(out, wanted[i // 2]) for out in outs)
