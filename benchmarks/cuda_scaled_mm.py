"""8-bit products on a GPU, and the quantization before them: qcore, torch, and vLLM's kernels.

    python benchmarks/cuda_scaled_mm.py OUT.json [--vllm LIBRARY] [--deep-gemm FOLDER]
                                                 [--rows M ...] [--plot FILE.png]
    python benchmarks/cuda_scaled_mm.py --plot FILE.png --from OUT.json

Every contender of a shape is a CUDA graph that goes through copies of its weights, more than the
L2 cache holds; the graphs are replayed in turn, round after round, and medians kept. ``floor`` is
what the bytes take at the bandwidth of a copy in the same run. ``--vllm`` names the library in
vLLM's wheel that has its ops (``vllm/_C*.so``), ``--deep-gemm`` the folder that has the package
``deep_gemm`` (``vllm/third_party`` of that wheel), which compiles its kernels as they are first
called and is asked from 1024 rows on. Errors are those of 16 rows against float64, relative to the
norm. ``layer`` is a whole layer: from bfloat16, with a scale for each row.
`cuda_paths.py` times every kernel of qcore's.

In these graphs a product follows another of its kind, and begins to fetch its weight while that one
ends (docs/adr/0019-early-launch.md); in a model it follows the quantization, as in ``layer``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cuda_timing import Step, bandwidth, copies_of, medians_us, shape_of
from environment import environment
from qcore_cuda import library, ops

SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))  # N, K
ROWS = (1, 4, 16, 64, 256, 1024, 8192)
KINDS = {
    torch.float8_e4m3fn: ("fp8", "fp8 block", "fp8 layer"),
    torch.int8: ("int8", "int8 azp", "int8 layer"),
}
QUANTIZED = ((1, 4096), (64, 4096), (4096, 4096), (8192, 14336))  # M, K
BFLOAT, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
Call = Callable[..., Any]
PLOTTED = (
    "qcore",
    "vLLM",
    "DeepGEMM",
    "torch._scaled_mm rows",
    "torch._scaled_mm tensor",
    "torch._int_mm",
    "bfloat16 @",
)


def codes(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Random codes of all magnitudes."""
    return torch.randn(rows, columns, device="cuda").mul(30).clamp(-127, 127).to(dtype)


class Layer:
    """Weights of one shape and dtype, several copies, and M rows of activations."""

    def __init__(self, N: int, K: int, dtype: torch.dtype) -> None:
        self.N, self.K, self.dtype = N, K, dtype
        self.weights = [codes(N, K, dtype).t() for _ in range(copies_of(N * K, 12))]
        self.scale = torch.rand(N, device="cuda") * 1e-3
        self.block_scale = torch.rand(N // 128, K // 128, device="cuda").mul(1e-3).t()
        self.azp_adj = self.weights[0].t().sum(1, dtype=torch.int32) if dtype == INT8 else None

    def activations(self, M: int) -> dict[str, torch.Tensor]:
        """Codes, and scales for each row and for each row and 128 inputs."""
        return {
            "a": codes(M, self.K, self.dtype),
            "scale": torch.rand(M, 1, device="cuda"),
            "block_scale": torch.rand(self.K // 128, M, device="cuda").t(),
            "azp": torch.randint(-9, 9, (M, 1), dtype=torch.int32, device="cuda"),
            "wide": torch.randn(M, self.K, dtype=BFLOAT, device="cuda"),
        }

    def exact(self, x: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
        """The result of the first copy, float64."""
        a, b = x["a"].double(), self.weights[0].double()
        if kind.endswith("layer"):
            return (x["wide"].double() @ b) * self.scale.double()
        if kind == "fp8 block":
            a = a * x["block_scale"].double().repeat_interleave(128, 1)
            wide = self.block_scale.double().repeat_interleave(128, 0)
            return a @ (b * wide.repeat_interleave(128, 1))
        if kind == "int8 azp":
            a = a - x["azp"].double()
        return (a @ b) * x["scale"].double() * self.scale.double()

    def contenders(self, kind: str, x: dict[str, torch.Tensor]) -> dict[str, Call]:
        """Functions of a weight."""
        M, a, s = x["a"].shape[0], x["a"], x["scale"]
        out = self.out = torch.empty(M, self.N, dtype=BFLOAT, device="cuda")
        found: dict[str, Call] = {}
        ours, vllm = torch.ops.qcore_cuda, getattr(torch.ops, "_C", None)
        has_vllm = hasattr(vllm, "cutlass_scaled_mm")
        if kind.endswith("layer"):
            return self._whole_layers(x["wide"], vllm if has_vllm else None)
        if kind == "int8 azp":
            rest = (s, self.scale, self.azp_adj, x["azp"], None)
            found["qcore"] = lambda w: ours.cutlass_scaled_mm_azp(out, a, w, *rest)
            if has_vllm:
                found["vLLM"] = lambda w: vllm.cutlass_scaled_mm_azp(out, a, w, *rest)
            return found
        scales = (s, self.scale)
        if kind == "fp8 block":
            scales = (x["block_scale"], self.block_scale)
        found["qcore"] = lambda w: ours.cutlass_scaled_mm(out, a, w, *scales, None)
        if has_vllm:
            found["vLLM"] = lambda w: vllm.cutlass_scaled_mm(out, a, w, *scales, None)
        if kind == "fp8 block" and M >= 1024 and "deep_gemm" in sys.modules:
            gemm = sys.modules["deep_gemm"].fp8_gemm_nt
            left, of_b = (a, x["block_scale"]), self.block_scale.t().contiguous()
            found["DeepGEMM"] = lambda w: gemm(left, (w.t(), of_b), out)
        if kind == "fp8":
            row = {"scale_a": s, "scale_b": self.scale.reshape(1, -1), "out_dtype": BFLOAT}
            one = torch.ones((), device="cuda")
            tensor = {"scale_a": one, "scale_b": one, "out_dtype": BFLOAT}
            fast = partial(torch._scaled_mm, use_fast_accum=True)
            found["torch._scaled_mm rows"] = lambda w: fast(a, w, **row)
            found["torch._scaled_mm tensor"] = lambda w: fast(a, w, **tensor)
        if kind == "int8" and M > 16:
            found["torch._int_mm"] = lambda w: torch._int_mm(a, w)
        return found

    def _whole_layers(self, x: torch.Tensor, vllm: Any) -> dict[str, Call]:
        """Functions of a weight that quantize x, too."""
        ours, out, scale = torch.ops.qcore_cuda, self.out, self.scale
        a = torch.empty(x.shape, dtype=self.dtype, device="cuda")
        s = torch.empty(len(x), 1, device="cuda")
        if self.dtype == FP8:
            found: dict[str, Call] = {
                "qcore": lambda w: ours.fp8_linear.out(
                    x, w.t(), scale, None, None, None, True, out=out
                )
            }
            quantizer = "dynamic_per_token_scaled_fp8_quant"
        else:
            found = {
                "qcore": lambda w: ours.int8_linear.out(
                    x, w.t(), scale, None, None, None, None, out=out
                )
            }
            quantizer = "dynamic_scaled_int8_quant"

        def apart(library: Any, w: torch.Tensor) -> None:
            getattr(library, quantizer)(a, x, s, None)
            library.cutlass_scaled_mm(out, a, w, s, scale, None)

        if len(x) <= 16:  # where one kernel may do both
            found["qcore, two ops"] = partial(apart, ours)
        if vllm:
            found["vLLM"] = partial(apart, vllm)
        return found


def errors(layer: Layer, kind: str) -> dict[str, float]:
    """Of 16 rows, relative to the norm of the result; of those that return what they should."""
    x = layer.activations(16)
    exact = layer.exact(x, kind)
    found = {}
    for name, call in layer.contenders(kind, x).items():
        if name in ("torch._int_mm", "torch._scaled_mm tensor"):
            continue  # without these scales
        result = call(layer.weights[0])
        if result is None:
            result = layer.out
        found[name] = float((result.double() - exact).norm() / exact.norm())
    return found


def products(args: argparse.Namespace, speed: float) -> list[dict[str, Any]]:
    """Every shape, kind and number of rows."""
    results = []
    for N, K in args.shapes:
        dense = [
            torch.randn(K, N, device="cuda", dtype=BFLOAT) for _ in range(copies_of(2 * N * K, 6))
        ]
        for dtype, kinds in KINDS.items():
            layer = Layer(N, K, dtype)
            for kind in kinds:
                wrong = errors(layer, kind)
                for M in args.rows:
                    x = layer.activations(M)
                    steps: dict[str, list[Step]] = {
                        name: [partial(call, w) for w in layer.weights]
                        for name, call in layer.contenders(kind, x).items()
                    }
                    if kind in ("fp8", "fp8 layer"):
                        steps["bfloat16 @"] = [partial(torch.matmul, x["wide"], w) for w in dense]
                    times = medians_us(steps)
                    size = N * K + M * K + 2 * M * N
                    row = {"N": N, "K": K, "M": M, "kind": kind, "floor_us": size / speed * 1e6}
                    results.append(
                        {
                            **row,
                            "us": times,
                            "tops": {n: 2e-6 * M * N * K / t for n, t in times.items()},
                        }
                    )
                    print(
                        f"{N:6d} x {K:5d}  M {M:5d}  {kind:9s} floor {row['floor_us']:7.1f}  "
                        + line(times),
                        flush=True,
                    )
                print(
                    f"{'':14s}  errors   {kind:9s}"
                    + "".join(f"  {n} {e:.1e}" for n, e in wrong.items())
                )
                results.append({"N": N, "K": K, "kind": kind, "errors": wrong})
    return results


def quantizers(M: int, K: int) -> dict[str, Call]:
    """Functions of x."""
    found: dict[str, Call] = {
        "int8 per token": ops.scaled_int8_quant,
        "int8 azp per token": partial(ops.scaled_int8_quant, symmetric=False),
        "fp8 per token": partial(ops.scaled_fp8_quant, use_per_token_if_dynamic=True),
        "fp8 group 128": lambda x: ops.per_token_group_fp8_quant(x, 128),
    }
    vllm = getattr(torch.ops, "_C", None)
    if hasattr(vllm, "dynamic_scaled_int8_quant"):
        q, f = (torch.empty(M, K, dtype=dtype, device="cuda") for dtype in (INT8, FP8))
        s = torch.empty(M, 1, device="cuda")
        to_int8, to_fp8 = vllm.dynamic_scaled_int8_quant, vllm.dynamic_per_token_scaled_fp8_quant
        found["vLLM int8 per token"] = lambda x: to_int8(q, x, s, None)
        found["vLLM fp8 per token"] = lambda x: to_fp8(f, x, s, None)
    return found


def quantizations(speed: float) -> list[dict[str, Any]]:
    """Activations of bfloat16 to 8 bits, beside a copy that moves as many bytes."""
    results = []
    for M, K in QUANTIZED:
        xs = [
            torch.randn(M, K, device="cuda", dtype=BFLOAT) for _ in range(copies_of(2 * M * K, 4))
        ]
        bytes_ = torch.empty(3 * M * K // 2, dtype=torch.uint8, device="cuda")
        other = torch.empty_like(bytes_)
        contenders = quantizers(M, K)
        steps: dict[str, list[Step]] = {
            n: [partial(c, x) for x in xs] for n, c in contenders.items()
        }
        steps["copy of as many bytes"] = [lambda to=other, at=bytes_: to.copy_(at)]
        times = medians_us(steps)
        floor = 3 * M * K / speed * 1e6
        results.append({"M": M, "K": K, "kind": "quantization", "floor_us": floor, "us": times})
        print(f"{M:6d} x {K:5d}  quantization  floor {floor:7.1f}  " + line(times), flush=True)
    return results


def line(times: dict[str, float]) -> str:
    """One contender after another."""
    return "  ".join(f"{name} {time:.1f}" for name, time in times.items())


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Time over the floor by M: a row of panels for each kind, a panel for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [r for r in results if "us" in r and "N" in r]
    kinds = list(dict.fromkeys(r["kind"] for r in timed))
    shapes = list(dict.fromkeys((r["N"], r["K"]) for r in timed))
    figure, axes = plt.subplots(
        len(kinds), len(shapes), figsize=(13, 3.4 * len(kinds)), squeeze=False
    )
    for panels, kind in zip(axes, kinds, strict=True):
        for axis, (N, K) in zip(panels, shapes, strict=True):
            here = [r for r in timed if (r["N"], r["K"], r["kind"]) == (N, K, kind)]
            names = [n for n in dict.fromkeys(n for r in here for n in r["us"]) if n in PLOTTED]
            for name in names:
                mine = [r for r in here if name in r["us"]]
                style = "-" if name == "qcore" else "--"
                axis.plot(
                    [r["M"] for r in mine],
                    [r["us"][name] for r in mine],
                    style,
                    marker="o",
                    label=name,
                    color=f"C{PLOTTED.index(name)}",
                )
            axis.plot(
                [r["M"] for r in here],
                [r["floor_us"] for r in here],
                ":",
                color="gray",
                label="bytes",
            )
            axis.set(xscale="log", yscale="log", xlabel="M", title=f"{kind}, {N} x {K}")
        panels[0].set_ylabel("microseconds")
        panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Measure, print, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    parser.add_argument("--vllm", type=Path, help="vLLM's library of ops")
    parser.add_argument("--deep-gemm", type=Path, help="the folder of the package deep_gemm")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="NxK")
    parser.add_argument("--plot", type=Path, help="write a plot here")
    parser.add_argument(
        "--from", type=Path, dest="source", help="plot these results, measure nothing"
    )
    args = parser.parse_args()
    if args.source:
        plot(json.loads(args.source.read_text(encoding="utf-8"))["results"], args.plot)
        return
    library.load()
    if args.vllm:
        torch.ops.load_library(str(args.vllm))
    if args.deep_gemm:
        sys.path.insert(0, str(args.deep_gemm))
        importlib.import_module("deep_gemm")
    speed = bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {speed / 1e12:.2f} TB/s; microseconds")
    results = products(args, speed) + quantizations(speed)
    document = {
        "environment": environment("qcore-cuda"),
        "device": torch.cuda.get_device_name(),
        "bytes_per_second": speed,
        "results": results,
    }
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
