"""How the GPU benchmarks measure: graphs of many steps, replayed in turn, medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

__all__ = ["Step", "bandwidth", "copies_of", "median_us", "medians_us", "relative_errors"]

Step = Callable[[], Any]

_CACHE_BYTES = 256 << 20
"""Several times an H200's L2."""
_LEAST_CALLS = 20
_WARM = 3


def copies_of(size: int, most: int = 40) -> int:
    """How many copies of a weight of ``size`` bytes it takes for each to come from memory."""
    return min(max(2, -(-_CACHE_BYTES // size)), most)


class _Replay:
    """A CUDA graph of a contender's steps, each several times."""

    def __init__(self, steps: Sequence[Step]) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for step in steps[:2]:
                step()
        torch.cuda.synchronize()
        calls = [steps[i % len(steps)] for i in range(max(len(steps), _LEAST_CALLS))]
        self.count = len(calls)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for step in calls:
                step()

    def us(self) -> float:
        """Of one step."""
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1000 / self.count


def medians_us(contenders: Mapping[str, Sequence[Step]], rounds: int = 15) -> dict[str, float]:
    """Microseconds of one step of each contender, measured in turn, round after round."""
    replays = {name: _Replay(steps) for name, steps in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + _WARM):
        for name, replay in replays.items():
            time = replay.us()
            if i >= _WARM:
                times[name].append(time)
    return {name: median(values) for name, values in times.items()}


def median_us(steps: Sequence[Step], rounds: int = 25) -> float:
    """Microseconds of one step."""
    return medians_us({"": steps}, rounds)[""]


def bandwidth() -> float:
    """Bytes read and written in a second by a copy."""
    # As large as the tensors that are compared with it, and several times the cache.
    source, target = torch.empty(2, 256 << 20, dtype=torch.uint8, device="cuda").unbind()
    return 2 * source.numel() / median_us([lambda: target.copy_(source)]) * 1e6


def relative_errors(
    forms: dict[str, Callable[[torch.Tensor], Callable[[int], torch.Tensor]]],
    x: torch.Tensor,
    exact: torch.Tensor,
) -> dict[str, float]:
    """Of each contender's result with the first copy, relative to the norm.

    Args:
        forms: from activations to a function of the number of a copy. What raises is taken out.
        x: the activations.
        exact: the result, float64.
    """
    found = {}
    for name, form in list(forms.items()):
        try:
            result = form(x)(0)
        except Exception as error:
            print(f"{name} does not take part: {type(error).__name__}: {error}", flush=True)
            del forms[name]
            continue
        found[name] = float((result.double() - exact).norm() / exact.norm())
    return found
