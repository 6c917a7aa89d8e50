"""How the GPU benchmarks measure: graphs of many steps, replayed in turn, medians."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch

__all__ = [
    "Contended",
    "Step",
    "bandwidth",
    "copies_of",
    "measure_layers",
    "median_us",
    "medians_us",
    "relative_errors",
    "shape_of",
]

Step = Callable[[], Any]


class Contended(Protocol):
    """A layer of N outputs and K inputs of which contenders have several copies."""

    N: int
    K: int
    bytes: int
    copies: int

    def contenders(self, M: int) -> dict[str, Callable[[int], Any]]:
        """For so many rows: functions of the number of a copy."""

    def errors(self) -> dict[str, float]:
        """Of each contender's result."""


_CACHE_BYTES = 256 << 20
"""Several times an H200's L2."""
_LEAST_CALLS = 20
_WARM_ROUNDS, _WARM_SECONDS = 3, 0.15
"""Until both are over nothing counts: an idle processor comes back to its clocks."""


def shape_of(text: str) -> tuple[int, int]:
    """N and K of a weight, from "4096x14336"."""
    N, _, K = text.partition("x")
    if not (N.isdecimal() and K.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NxK, like 4096x14336")
    return int(N), int(K)


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
    begun, warm = time.perf_counter(), 0
    while warm < _WARM_ROUNDS or time.perf_counter() - begun < _WARM_SECONDS:
        warm += 1
        for replay in replays.values():
            replay.us()
    for _ in range(rounds):
        for name, replay in replays.items():
            times[name].append(replay.us())
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


def measure_layers(
    layers: Iterable[tuple[dict[str, Any], Callable[[], Contended]]],
    rows: Sequence[int],
    rounds: int,
    speed: float,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Time every contender of each layer for every number of rows, and print it.

    Args:
        layers: what results are to be labelled with, and what makes the layer; one is held at a
            time.
        rows: of activations.
        rounds: of measurement.
        speed: bytes a second, for ``floor_us``.
        keep: called with the results so far after each layer.
    """
    results: list[dict[str, Any]] = []
    for labels, make in layers:
        layer = make()
        N, K = layer.N, layer.K
        of_layer = {**labels, "N": N, "K": K}
        wrong = layer.errors()
        for M in rows:
            steps: dict[str, list[Step]] = {
                name: [partial(call, i) for i in range(layer.copies)]
                for name, call in layer.contenders(M).items()
            }
            times = medians_us(steps, rounds)
            floor = (layer.bytes + 2 * M * (N + K)) / speed * 1e6
            row = {**of_layer, "M": M, "floor_us": floor, "us": times}
            row["of_floor"] = {name: floor / time for name, time in times.items()}
            row["tflops"] = {name: 2e-6 * M * N * K / time for name, time in times.items()}
            results.append(row)
            line = "  ".join(f"{name} {time:.1f}" for name, time in times.items())
            title = " ".join(map(str, labels.values()))
            print(f"{title:9s} {N:6d} x {K:5d}  M {M:5d}  floor {floor:6.1f}  {line}", flush=True)
        print(f"{'':24s}  errors  " + "  ".join(f"{n} {e:.1e}" for n, e in wrong.items()))
        results.append({**of_layer, "errors": wrong})
        keep(results)
        del layer, steps
        torch.cuda.empty_cache()
    return results
