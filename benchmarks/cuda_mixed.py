"""4-bit weights, 16-bit activations on a GPU: qcore, Marlin, Machete, Humming, Triton, bfloat16.

    python benchmarks/cuda_mixed.py OUT.json [--vllm LIBRARY] [--ways] [--rows M ...]
                                             [--plot FILE.png]
    python benchmarks/cuda_mixed.py OUT.json --formats [FP8 FP8-BLOCK NVFP4 ...]
    python benchmarks/cuda_mixed.py --plot FILE.png --from OUT.json

Every contender of a shape is a CUDA graph that goes through copies of its weights, more than the
L2 cache holds; the graphs are replayed in turn, round after round, and medians kept. ``floor`` is
what the bytes take at the bandwidth of a copy in the same run. ``--vllm`` names the library in
vLLM's wheel that has its ops (``vllm/_C*.so``). Humming takes part where the package ``humming`` is
installed (it compiles its kernels as they are first called), Triton's kernel is qcore's own.
``--ways`` times every kernel of qcore's for the same work; ``marlin_linear``, the op of the
generated kernels, among them reads the same words as if they were in Marlin's layout: it has a time
and no result. Weights: random codes, symmetric, groups of 128, scales in bfloat16. Errors are those
of 16 rows against float64, relative to the norm. ``--formats`` times weights in small floats
instead (see cuda_mixed_formats.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cuda_mixed_formats import FORMAT_ROWS, FORMATS, FormatLayer
from cuda_plans import TILES, up
from cuda_timing import bandwidth, copies_of, measure_layers, relative_errors
from environment import environment
from qcore.facts.scalar_type import scalar_types
from qcore_cuda import library
from qcore_cuda.kernels.gptq_packing import in_lanes, pack_along_k

SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))  # N, K
ROWS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
GROUP = 128
BFLOAT = torch.bfloat16
UINT4B8 = scalar_types.uint4b8.id  # a number that vLLM knows it by as well
PLOTTED = ("qcore", "Humming", "Machete", "Marlin", "Triton", "bfloat16 @")
Call = Callable[[int], Any]


class Layer:
    """Random weights of one shape: codes once, each contender's form of it several times."""

    def __init__(self, N: int, K: int, args: argparse.Namespace) -> None:
        self.N, self.K, self.args = N, K, args
        self.bytes = N * K // 2 + N * (K // GROUP) * 2
        self.copies = copies_of(self.bytes, 12)
        codes = torch.randint(0, 16, (K, N), dtype=torch.uint8, device="cuda")
        self.scales = torch.rand(K // GROUP, N, device="cuda").add(0.5).mul(0.01).to(BFLOAT)
        self.exact = (codes.double() - 8) * self.scales.double().repeat_interleave(GROUP, 0)
        self.ours = self._copies(pack_along_k(codes, 4))
        self.lanes = self._copies(in_lanes(codes))  # as a layer has them on SM90
        self.scale_copies = self._copies(self.scales)
        self.dense = [self.exact.to(BFLOAT) for _ in range(copies_of(2 * N * K, 6))]
        self.forms: dict[str, Callable[[torch.Tensor], Call]] = {
            "qcore": self._qcore,
            "bfloat16 @": lambda x: lambda i: torch.matmul(x, self.dense[i % len(self.dense)]),
        }
        self._add("Triton", self._triton, codes)
        if args.vllm:
            self._add("Marlin", self._marlin, codes)
            self._add("Machete", self._machete, codes)
        self._add("Humming", self._humming, codes)

    def _add(self, name: str, make: Callable[[torch.Tensor], Any], codes: torch.Tensor) -> None:
        try:
            self.forms[name] = make(codes)
        except Exception as error:
            print(f"{name} does not take part: {type(error).__name__}: {error}", flush=True)

    def _copies(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.clone() for _ in range(self.copies)]

    def _qcore(self, x: torch.Tensor) -> Call:
        op = torch.ops.qcore_cuda.wna16_linear
        rest = (None, None, None, None, 4, 8, GROUP, self.K, self.N)
        return lambda i: op(x, self.lanes[i], self.scale_copies[i], *rest)

    def ways(self, x: torch.Tensor) -> dict[str, Call]:
        """Each of qcore's kernels, and the divisions of the one for SM90."""
        found = {"marlin_linear": self._marlin_linear(x)}
        linear, sm90 = torch.ops.qcore_cuda.wna16_linear, torch.ops.qcore_cuda.wna16_sm90
        mid = torch.ops.qcore_cuda.wna16_mid_m
        rest = (None, None, None, None, 4, 8, GROUP, self.K, self.N, False)
        if x.shape[0] <= 128:
            found["few rows"] = lambda i: linear(
                x, self.ours[i], self.scale_copies[i], *rest, x.shape[0]
            )
        if x.shape[0] <= 256:
            found["medium"] = lambda i: mid(
                x, self.ours[i], self.scale_copies[i], None, 4, 8, GROUP
            )
            for columns in (1, 2, 4, 7, 8):
                for split in (1, 2, 4, 8):
                    found[f"medium, {32 * columns} columns, {split} parts"] = partial(
                        lambda columns, split, i: mid(
                            x,
                            self.ours[i],
                            self.scale_copies[i],
                            None,
                            4,
                            8,
                            GROUP,
                            0,
                            columns,
                            split,
                        ),
                        columns,
                        split,
                    )
        for rows, columns in TILES:
            for parts in (0, *range(2, 9)):
                tiles = up(x.shape[0], rows) * up(self.N, columns)
                if (parts and tiles * parts > 264) or rows // 2 > x.shape[0]:
                    continue
                found[f"{rows} x {columns}, {parts} parts"] = partial(
                    lambda tile, i: sm90(
                        x, self.ours[i], self.scale_copies[i], None, 4, 8, GROUP, *tile
                    ),
                    (rows, columns, parts),
                )
        return found

    def _marlin_linear(self, x: torch.Tensor) -> Call:
        op = torch.ops.qcore_cuda.marlin_linear
        words = [packed.view(self.K // 16, 2 * self.N) for packed in self.ours]
        workspace = torch.zeros(1024, dtype=torch.int32, device="cuda")
        rest = (*(None,) * 6, workspace, UINT4B8, self.N, BFLOAT)
        return lambda i: op(x, words[i], self.scale_copies[i], *rest)

    def _triton(self, codes: torch.Tensor) -> Callable[[torch.Tensor], Call]:
        from qcore.kernels import MPLinearLayerConfig, process_weights
        from qcore.testing import make_layer
        from qcore.triton.w4a16 import TritonW4A16LinearKernel

        shape = (self.K, self.N)
        config = MPLinearLayerConfig(shape, shape, scalar_types.uint4b8, BFLOAT, GROUP, False)
        words = torch.zeros(self.N, self.K // 8, dtype=torch.int32, device="cuda")
        for i in range(8):
            words |= codes.t()[:, i::8].int() << (4 * i)
        layers = []
        for _ in range(self.copies):
            tensors = {"weight_packed": words, "weight_scale": self.scales.t().contiguous()}
            layer = make_layer(config, tensors, device="cuda")
            kernel = TritonW4A16LinearKernel.from_config(config)
            process_weights(kernel, layer)
            layers.append((kernel, layer))
        return lambda x: lambda i: layers[i][0].apply_weights(layers[i][1], x)

    def _marlin(self, codes: torch.Tensor) -> Callable[[torch.Tensor], Call]:
        vllm, ours = torch.ops._C, torch.ops.qcore_cuda
        words = torch.zeros(self.K // 8, self.N, dtype=torch.int32, device="cuda")
        for i in range(8):
            words |= codes[i::8].int() << (4 * i)
        packed = self._copies(ours.gptq_marlin_repack(words, self.K, self.N, 4))
        order = [i + 8 * j for i in range(8) for j in range(8)]  # of 64 scales, as its kernels read
        scales = self._copies(self.scales.reshape(-1, 64)[:, order].reshape(-1, self.N))
        workspace = torch.zeros(512, dtype=torch.int32, device="cuda")

        def form(x: torch.Tensor) -> Call:
            M = x.shape[0]
            rest = (workspace, UINT4B8, M, self.N, self.K, False, True, False)
            none = (None, None, None)
            return lambda i: vllm.marlin_gemm(x, None, packed[i], None, scales[i], *none, *rest)

        return form

    def _machete(self, codes: torch.Tensor) -> Callable[[torch.Tensor], Call]:
        vllm = torch.ops._C
        words = torch.zeros(self.K // 8, self.N, dtype=torch.int32, device="cuda")
        for i in range(8):
            words |= codes[i::8].int() << (4 * i)
        columns = words.t().contiguous().t()
        packed = [
            vllm.machete_prepack_B(columns, BFLOAT, UINT4B8, BFLOAT) for _ in range(self.copies)
        ]
        rest = (None, GROUP, None, None, None)
        return lambda x: (
            lambda i: vllm.machete_mm(x, packed[i], UINT4B8, BFLOAT, self.scale_copies[i], *rest)
        )

    def _humming(self, _: torch.Tensor) -> Callable[[torch.Tensor], Call]:
        from humming.layer import HummingLayer

        weight = self.exact.t().to(BFLOAT).contiguous()
        layers = []
        for _ in range(self.copies):
            layer = HummingLayer(
                shape_n=self.N,
                shape_k=self.K,
                weight_config={"dtype": "uint4", "scale_dtype": "bfloat16", "group_size": GROUP},
                torch_dtype=BFLOAT,
            ).cuda()
            layer.load_from_unquantized(weight)
            layer.transform()
            layers.append(layer)
        return lambda x: lambda i: layers[i](x)

    def contenders(self, M: int) -> dict[str, Call]:
        """Functions of the number of a copy."""
        x = torch.randn(M, self.K, device="cuda").to(BFLOAT)
        found = {name: form(x) for name, form in self.forms.items()}
        return {**found, **self.ways(x)} if self.args.ways else found

    def errors(self) -> dict[str, float]:
        """Of 16 rows, relative to the norm of the result."""
        x = torch.randn(16, self.K, device="cuda").to(BFLOAT)
        return relative_errors(self.forms, x, x.double() @ self.exact)


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Time by M, a panel for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SHAPES), figsize=(13, 4), squeeze=False)
    for axis, (N, K) in zip(axes[0], SHAPES, strict=True):
        here = [r for r in results if "us" in r and (r["N"], r["K"]) == (N, K)]
        for number, name in enumerate(PLOTTED):
            mine = [r for r in here if name in r["us"]]
            if mine:
                rows, times = [r["M"] for r in mine], [r["us"][name] for r in mine]
                style = "-" if name == "qcore" else "--"
                axis.plot(rows, times, style, marker="o", label=name, color=f"C{number}")
        floors = [r["floor_us"] for r in here]
        axis.plot([r["M"] for r in here], floors, ":", color="gray", label="bytes")
        axis.set(xscale="log", yscale="log", xlabel="M", title=f"{N} x {K}")
    axes[0][0].set_ylabel("microseconds")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Measure, print, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    parser.add_argument("--vllm", type=Path, help="vLLM's library of ops")
    parser.add_argument(
        "--ways",
        action="store_true",
        help="time each of qcore's kernels for the work as well; marlin_linear among them reads "
        "words that are not in its layout: a time, no result",
    )
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=tuple(FORMATS),
        help="time these instead of 4-bit integers; all, if none is named",
    )
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--plot", type=Path, help="write a plot here")
    parser.add_argument(
        "--from", type=Path, dest="source", help="plot these results, measure nothing"
    )
    args = parser.parse_args()
    if args.source:
        plot(json.loads(args.source.read_text(encoding="utf-8"))["results"], args.plot)
        return
    args.rows = args.rows or (ROWS if args.formats is None else FORMAT_ROWS)
    args.rounds = args.rounds or (15 if args.formats is None else 7)
    library.load()
    if args.vllm:
        torch.ops.load_library(str(args.vllm))
    speed = bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {speed / 1e12:.2f} TB/s; microseconds")
    layers: list[tuple[dict[str, Any], Callable[[], Any]]]
    if args.formats is None:
        layers = [({}, partial(Layer, N, K, args)) for N, K in SHAPES]
    else:
        layers = [
            ({"format": name}, partial(FormatLayer, name, N, K))
            for name in args.formats or FORMATS
            for N, K in SHAPES
        ]
    about = {
        "environment": environment("qcore-cuda"),
        "device": torch.cuda.get_device_name(),
        "bytes_per_second": speed,
        **({"group_size": GROUP} if args.formats is None else {}),
    }

    def keep(results: list[dict[str, Any]]) -> None:
        if args.output:
            text = json.dumps({**about, "results": results}, indent=1)
            args.output.write_text(text + "\n", encoding="utf-8")

    results = measure_layers(layers, args.rows, args.rounds, speed, keep)
    if args.plot and args.formats is None:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
