"""qcore's CPU kernels, torch's float linear and other libraries' 4-bit layers, against the machine.

    python benchmarks/cpu_linear.py [--quick] [--threads N ...] [--dtype D ...] [--isa I ...]
                                    [--peers PYTHON] [--out FILE.json] [--plot FILE.png]

``--peers`` names the Python of an environment with numpy and any of: onnxruntime and onnx;
openvino; llama-cpp-python and ik-llama-cpp-python (`ggml_peers.py` says how to build them). All
contenders of a layer are measured in turn, round after round, and the median is kept. There are as
many copies of each weight as it takes to exceed the caches, used in turn, so that M=1 reads memory;
a turn takes all of them, so that what follows another library's turn (threads that sleep, other
pages) is the same part of each.
What memory and arithmetic units can do is measured between the layers of the same run
(`roofline.cpp`). The error is that of the result against float64, relative to its norm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import qcore
import torch
from cpu_int8 import TORCH_ENGINES, int8_tensors, torch_dynamic
from cpu_layers import activations, make_int8, make_saturating, saturating_input
from cpu_layers import make as make_numbers
from environment import environment
from qcore.kernels import process_weights
from qcore.testing import make_layer
from qcore_cpu import library
from roofline import Roofline

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336), (640, 640)]
SHAPES += [(2048, 640), (640, 2048), (1024, 640), (262144, 640)]  # Gemma 3 270M's
QUICK_SHAPES = [(4096, 4096), (640, 640)]
ROWS = [1, 4, 16, 64, 256, 512]
MOST_OPERATIONS = 64e9
"""Of a layer: rows that make more of them are left out."""
CACHE_BYTES = 160 << 20
RUN_SECONDS = 0.03
"""After which a turn of this process's contenders takes no further copy. Other processes' take all:
they compute a graph of them."""
GROUP = 128
LIBRARIES = ("llama.cpp", "ik_llama.cpp")
PEERS = (
    "ORT accuracy_level=0",
    "ORT accuracy_level=4",
    "OpenVINO float32",
    *(f"{library} {qtype}" for library in LIBRARIES for qtype in ("Q4_0", "Q4_K", "Q8_0")),
)
INT8_PEERS = ("ORT DynamicQuantizeMatMul",)
Step = Callable[[int], float]
"""Runs a layer on M rows; the seconds it took."""


def relative(result: np.ndarray, exact: np.ndarray) -> float:
    """The error, relative to the norm."""
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


class Contender:
    """One way to compute one layer.

    Args:
        name: for the table.
        size: bytes of its weight.
        copies: how many weights there are.
        run: runs the layer with weight ``turn``, counted round and round, on ``x``.
        prepare: the input for M rows.
    """

    def __init__(
        self,
        name: str,
        size: int,
        copies: int,
        run: Callable[[torch.Tensor, int], torch.Tensor],
        prepare: Callable[[int], torch.Tensor],
    ) -> None:
        self.name, self.size, self.run, self._prepare = name, size, run, prepare
        self._copies = copies
        self._inputs: dict[int, torch.Tensor] = {}
        self._turn = 0

    def _input(self, M: int) -> torch.Tensor:
        if M not in self._inputs:
            self._inputs[M] = self._prepare(M)
        return self._inputs[M]

    def seconds(self, M: int) -> float:
        """Of a layer, the mean of a turn."""
        x = self._input(M)
        begin, passed, taken = time.perf_counter(), 0.0, 0
        while taken < self._copies and passed < RUN_SECONDS:
            self.run(x, self._turn)
            self._turn += 1
            taken += 1
            passed = time.perf_counter() - begin
        return passed / taken

    def error(self, M: int, exact: np.ndarray) -> float:
        """Of the result, relative to its norm."""
        return relative(self.run(self._input(M), 0).double().numpy(), exact)


class Peer:
    """A contender in another process."""

    def __init__(
        self, python: str, name: str, N: int, K: int, copies: int, threads: int, **more: Any
    ) -> None:
        self.name, self._K = name, K
        server = "cpu_int8_peers.py" if name in INT8_PEERS else "cpu_peers.py"
        script = Path(__file__).with_name(server)
        self._process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        made = self._ask(
            do="make", peer=name, N=N, K=K, group_size=GROUP, copies=copies, threads=threads, **more
        )
        self.size, self.version = made["bytes"], made["version"]

    def _ask(self, **what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def seconds(self, M: int) -> float:
        return float(self._ask(do="run", M=M, K=self._K)["seconds"])

    def error(self, M: int, exact: np.ndarray) -> float:
        """Of the result, relative to its norm; `exact` unless the peer's weight is another."""
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder, "result.npy"))
            answer = self._ask(do="result", M=M, K=self._K, file=file)
            exact = np.load(answer["exact"]) if "exact" in answer else exact
            return relative(np.load(file).astype(np.float64), exact)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


@contextmanager
def peers_of(
    python: str | None,
    N: int,
    K: int,
    copies: int,
    threads: int,
    names: tuple[str, ...] = PEERS,
    **more: Any,
) -> Iterator[list[Peer]]:
    """The peers that run here; one that does not is said so and left out."""
    with ExitStack() as stack:
        found = []
        for name in names if python else ():
            assert python is not None
            try:
                peer = Peer(python, name, N, K, copies, threads, **more)
            except (RuntimeError, OSError, ValueError) as error:
                print(f"{name} is left out: {error}")
                continue
            stack.callback(peer.close)
            found.append(peer)
        yield found


def copies_for(size: int) -> int:
    """How many weights of ``size`` bytes exceed the caches."""
    return max(2, min(256, -(-CACHE_BYTES // size)))


def int4_tensors(config: Any, seed: int) -> dict[str, torch.Tensor]:
    """The canonical tensors of the layer that peers make from this seed."""
    N, K = config.out_features, config.in_features
    numbers = make_numbers(N, K, GROUP, seed)
    return {
        "weight_packed": torch.from_numpy(numbers.packed).view(torch.int32),
        "weight_scale": torch.from_numpy(numbers.scale),
    }


def ours(
    label: str, config: Any, tensors_of: Callable[[int], Any], isa: str, approximate: bool
) -> Contender:
    """The kernel that qcore selects, with this instruction set."""
    settings = qcore.Settings(approximate=approximate)
    kernel_class = qcore.select(config, settings=settings).kernel_class
    layers: list[tuple[Any, torch.nn.Module]] = []
    size, copies, seed = 0, 1, 0
    while seed < copies:
        layer = make_layer(config, tensors_of(seed))
        kernel = kernel_class.from_config(config)
        process_weights(kernel, layer)
        layers.append((kernel, layer))
        if seed == 0:
            size = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
            copies = copies_for(size)
        seed += 1
    dtype = getattr(config, "act_type", None) or config.input_dtype

    def run(x: torch.Tensor, turn: int) -> torch.Tensor:
        library.set_isa(isa)
        kernel, layer = layers[turn % len(layers)]
        return kernel.apply_weights(layer, x)

    def prepare(M: int) -> torch.Tensor:
        return torch.from_numpy(activations(M, config.in_features)).to(dtype)

    name = f"{kernel_class.__name__} {label} {isa}"
    return Contender(name, size, len(layers), run, prepare)


def dense(weight: torch.Tensor) -> Contender:
    """torch's linear with a float weight."""
    weights = [weight.clone() for _ in range(copies_for(weight.nbytes))]

    def run(x: torch.Tensor, turn: int) -> torch.Tensor:
        return torch.nn.functional.linear(x, weights[turn % len(weights)])

    def prepare(M: int) -> torch.Tensor:
        return torch.from_numpy(activations(M, weight.shape[1])).to(weight.dtype)

    return Contender(f"torch {_name(weight.dtype)}", weight.nbytes, len(weights), run, prepare)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(contenders: list[Any], M: int, budget: float) -> dict[str, float]:
    """Median seconds of a step, by contender, over interleaved rounds; ``budget`` seconds each."""
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for contender in contenders:
        contender.seconds(M)
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - start < budget * len(contenders):
        for contender in contenders if rounds % 2 else contenders[::-1]:
            times[contender.name].append(contender.seconds(M))
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def rows_of(
    scheme: str, contenders: list[Any], weight: np.ndarray, limits: Any, args: Any
) -> Iterator[dict[str, Any]]:
    """One result for each M and contender."""
    N, K = weight.shape
    for M in [M for M in args.rows if 2 * M * N * K <= MOST_OPERATIONS]:
        exact = activations(M, K).astype(np.float64) @ weight.T
        for name, seconds in measure(contenders, M, args.budget).items():
            contender = next(c for c in contenders if c.name == name)
            error = contender.error(M, exact)
            yield {
                "scheme": scheme,
                "N": N,
                "K": K,
                "M": M,
                "threads": limits["threads"],
                "contender": name,
                "us": seconds * 1e6,
                "weight_bytes": contender.size,
                "weight_gb_per_s": contender.size / seconds / 1e9,
                "gop_per_s": 2 * M * N * K / seconds / 1e9,
                "of_memory": contender.size / seconds / limits["memory"],
                "relative_error": error,
            }


def int4_layers_of(
    N: int, K: int, threads: int, args: Any
) -> Iterator[tuple[str, list[Any], np.ndarray]]:
    """Layers of 4 bits, and torch's float ones."""
    numbers = make_numbers(N, K, GROUP, 0)
    weight = numbers.weight
    size = numbers.packed.nbytes + numbers.scale.nbytes
    with peers_of(args.peers, N, K, copies_for(size), threads) as peers:
        contenders: list[Any] = list(peers)
        for dtype in args.dtypes:
            config = qcore.MPLinearLayerConfig(
                (K, N), (K, N), qcore.scalar_types.uint4b8, dtype, GROUP, False
            )
            for isa in args.isas:
                for approximate in (False, True):
                    tensors = lambda seed, c=config: int4_tensors(c, seed)  # noqa: E731
                    contenders.append(ours(_name(dtype), config, tensors, isa, approximate))
        contenders += [dense(torch.from_numpy(weight).to(t)) for t in args.dtypes]
        yield f"int4-g{GROUP}", contenders, weight.astype(np.float64)


def layers_of(
    N: int, K: int, threads: int, args: Any
) -> Iterator[tuple[str, list[Any], np.ndarray]]:
    """What is measured against each other: a name, the contenders, the weight in float64."""
    if "int4" in args.schemes:
        yield from int4_layers_of(N, K, threads, args)
    if "int8" not in args.schemes:
        return
    layer8 = make_int8(N, K, 0)
    copies = copies_for(layer8.codes.nbytes)
    with peers_of(args.peers, N, K, copies, threads, INT8_PEERS) as peers:
        yield (
            "int8",
            [*peers, *int8_contenders(lambda seed: make_int8(N, K, seed), copies, args)],
            layer8.weight.astype(np.float64),
        )


def int8_contenders(make: Callable[[int], Any], copies: int, args: Any) -> list[Contender]:
    """W8A8 in this process: qcore's kernel, torch's two engines."""
    first = make(0)
    N, K = first.codes.shape
    found = []
    for dtype in args.dtypes:
        config = qcore.Int8ScaledMMLinearLayerConfig(
            False, True, True, weight_shape=(N, K), input_dtype=dtype
        )
        tensors = lambda seed: int8_tensors(make(seed))  # noqa: E731
        found += [ours(_name(dtype), config, tensors, isa, False) for isa in args.isas]
    for engine in TORCH_ENGINES:
        run = torch_dynamic(engine, [make(seed) for seed in range(copies)])
        size = first.codes.nbytes + first.scale.nbytes
        prepare = lambda M: torch.from_numpy(activations(M, K))  # noqa: E731
        found.append(Contender(f"torch linear_dynamic {engine}", size, copies, run, prepare))
    return found


def saturation_errors(args: Any) -> dict[str, float]:
    """Relative error of each W8A8 contender where sums of two products are at their largest."""
    N = K = 256
    layer, x = make_saturating(N, K), saturating_input(4, K)
    exact = x.astype(np.float64) @ layer.weight.T.astype(np.float64)
    args = argparse.Namespace(**{**vars(args), "dtypes": [torch.float32]})
    errors = {
        contender.name: relative(contender.run(torch.from_numpy(x), 0).double().numpy(), exact)
        for contender in int8_contenders(lambda seed: layer, 1, args)
    }
    with peers_of(args.peers, N, K, 1, 1, INT8_PEERS, saturating=True) as peers:
        return errors | {peer.name: peer.error(4, exact) for peer in peers}


def table_row(row: dict[str, Any]) -> str:
    return (
        f"{row['scheme']:<9} {row['N']:>5} {row['K']:>5} {row['M']:>3} {row['threads']:>1}  "
        f"{row['contender']:<52} {row['us']:>9.1f} {row['weight_gb_per_s']:>6.1f} "
        f"{row['of_memory']:>6.0%} {row['gop_per_s']:>7.1f} {row['relative_error']:>8.1e}"
    )


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Operations a second by M; one panel for each shape and number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [r for r in results if r["scheme"].startswith("int4")]
    panels = list(dict.fromkeys((r["N"], r["K"], r["threads"]) for r in shown))
    names = list(dict.fromkeys(r["contender"] for r in shown))
    height = -(-len(panels) // 4)
    figure, axes = plt.subplots(height, 4, figsize=(16, 4 * height), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    colors = [plt.get_cmap("tab20")(i) for i in range(20)]
    for axis, (N, K, threads) in zip(axes.flat, panels, strict=False):
        here = [r for r in shown if (r["N"], r["K"], r["threads"]) == (N, K, threads)]
        for name, color in zip(names, colors, strict=False):
            mine = [r for r in here if r["contender"] == name]
            style = "-" if name.startswith("CPU") else "--"
            rates = [r["gop_per_s"] for r in mine]
            axis.plot([r["M"] for r in mine], rates, style, marker=".", color=color, label=name)
        axis.set(xscale="log", yscale="log", title=f"{N} x {K}, {threads} threads")
    for row in axes:
        row[0].set_ylabel("GOP/s")
    for axis in axes.flat[max(0, len(panels) - 4) : len(panels)]:
        axis.set_xlabel("M")
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.3 / height, 1, 1))
    figure.savefig(file, dpi=80)


def write(
    file: Path,
    limits: list[dict[str, Any]],
    saturated: dict[str, float],
    results: list[dict[str, Any]],
) -> None:
    """The report, as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "environment": environment("qcore-cpu"),
        "limits": limits,
        "int8_saturation_errors": saturated,
        "results": results,
    }
    file.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Measure, print a table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, shorter rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], dest="dtypes")
    parser.add_argument("--isa", nargs="+", default=None, dest="isas")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument(
        "--schemes", nargs="+", default=["int4", "int8"], help="which of them to measure"
    )
    parser.add_argument("--shapes", nargs="+", help="NxK ...; the default is a list")
    parser.add_argument("--peers", help="the Python of an environment with the peers")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--plot", type=Path, help="write a plot here")
    args = parser.parse_args()
    args.dtypes = [getattr(torch, name) for name in args.dtypes]
    args.isas = args.isas or [library.isa()]
    args.shapes = [tuple(int(side) for side in shape.split("x")) for shape in args.shapes or ()]
    args.budget = 0.1 if args.quick else 0.4
    saturated = saturation_errors(args) if "int8" in args.schemes else {}
    for name, error in saturated.items():
        print(f"int8, largest products: {name:<52} {error:8.1e}")
    roofline, results, limits = Roofline(), [], []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for N, K in args.shapes or (QUICK_SHAPES if args.quick else SHAPES):
            limit = {
                "threads": threads,
                "N": N,
                "K": K,
                "load": os.getloadavg()[0],
                "memory": roofline.bandwidth(threads),
                "operations": roofline.operations(threads),
            }
            limits.append(limit)
            rates = {name: f"{rate / 1e9:.0f}" for name, rate in limit["operations"].items()}
            print(f"memory {limit['memory'] / 1e9:.1f} GB/s, GOP/s {rates}, load {limit['load']}")
            with torch.inference_mode():
                for scheme, contenders, weight in layers_of(N, K, threads, args):
                    for row in rows_of(scheme, contenders, weight, limit, args):
                        results.append(row)
                        print(table_row(row), flush=True)
            if args.out:  # what there is, should the rest be stopped
                write(args.out, limits, saturated, results)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
