"""Microseconds of generated kernels beside torch's product; a first look, not a benchmark.

python tests/time_marlin.py
"""

from __future__ import annotations

import torch
from qcore.facts.scalar_type import ScalarType
from qcore_cuda import library


def microseconds(call: object, times: int = 20) -> float:
    """Of one call, in a graph of `times`."""
    assert callable(call)
    call(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(times):
            call(i)
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / (10 * times)


def compare(N: int, K: int, M: int) -> str:
    """One line of the table."""
    copies = max(2, 400_000_000 // (N * K))  # so that no weight is found in the cache
    words = torch.randint(0, 2**31 - 1, (copies, K // 16, N * 2), dtype=torch.int32, device="cuda")
    scales = torch.rand(K // 128, N, device="cuda").bfloat16()
    dense = torch.randn(max(2, copies // 4), K, N, device="cuda", dtype=torch.bfloat16)
    workspace = torch.zeros(1024, dtype=torch.int32, device="cuda")
    x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)

    def marlin(i: int) -> None:
        torch.ops.qcore_cuda.marlin_linear(
            x, words[i % copies], scales, None, None, None, None, None, None, workspace,
            ScalarType.uint(4, 8).id, N, torch.bfloat16,
        )  # fmt: skip

    def whole(i: int) -> None:
        torch.mm(x, dense[i % len(dense)])

    of_marlin, of_torch = microseconds(marlin), microseconds(whole)
    return f"{N} x {K}, M={M}: marlin {of_marlin:.1f} us, bf16 {of_torch:.1f} us"


def main() -> None:
    """bfloat16, int4 in groups of 128."""
    library.load()
    for N, K in ((4096, 4096), (28672, 4096), (4096, 14336)):
        for M in (1, 16, 64, 256, 1024):
            print(compare(N, K, M), flush=True)


if __name__ == "__main__":
    main()
