"""The matrix product of llama.cpp and of ik_llama.cpp, for `cpu_peers.py`: through ctypes, in C.

llama.cpp's is that of llama-cpp-python: the layout CPU_REPACK where it has one for the type, as
llama.cpp itself does. ik_llama.cpp's is that of ik-llama-cpp-python, with the rows interleaved (the
types _R4 and _R8). Both round activations to int8, by blocks of 32 or 256. Build them from their
sources (``pip install --no-binary ...``, CMAKE_ARGS=-DGGML_NATIVE=ON): wheels are for any machine.

Q4_0 and Q8_0 hold the numbers of the benchmark's layer exactly, the scale of a group repeated for
each block. Q4_K cannot; its weight is what ggml's quantizer makes of them, and the result is to be
compared with that one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from cpu_layers import Layer

__all__ = ["ik_llama_cpp", "llama_cpp"]

Run = Callable[[np.ndarray], list[np.ndarray]]
F32, TYPES = 0, {"Q4_0": 2, "Q8_0": 8, "Q4_K": 12}
HEADER = 1 << 20
"""Bytes for the descriptions of tensors and of a graph."""


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool))


class Plan(ctypes.Structure):
    """ggml_cplan of ik_llama.cpp."""

    _fields_ = (
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("threads", c_int),
        ("abort", c_void_p),
        ("abort_data", c_void_p),
    )


class Ggml:
    """The functions that both libraries have."""

    def __init__(self, package: str, names: tuple[str, ...]) -> None:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise RuntimeError(f"{package} is not installed")
        home = Path(spec.origin).parent
        folder = next(home / part for part in ("lib", "bin") if (home / part / names[0]).exists())
        self._libraries = [ctypes.CDLL(str(folder / n), ctypes.RTLD_GLOBAL) for n in names]
        self.init = self.function("ggml_init", c_void_p, InitParams)
        self.free = self.function("ggml_free", None, c_void_p)
        self.matrix = self.function(
            "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64
        )
        self.mul_mat = self.function("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
        self.graph = self.function("ggml_new_graph_custom", c_void_p, c_void_p, c_size_t, c_bool)
        self.expand = self.function("ggml_build_forward_expand", None, c_void_p, c_void_p)
        self.data = self.function("ggml_get_data", c_void_p, c_void_p)

    def function(self, name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
        """A function of one of the libraries."""
        for library in self._libraries:
            if hasattr(library, name):
                found = getattr(library, name)
                found.restype, found.argtypes = result, arguments
                return found
        raise RuntimeError(f"no library has {name}")

    def blocks(self, layer: Layer, qtype: str) -> np.ndarray:
        """The weight as ggml stores it, bytes [N, row]."""
        N, K = layer.codes.shape
        if qtype == "Q4_K":
            if K % 256:
                raise ValueError(f"blocks of 256 do not divide K={K}")
            values = np.ascontiguousarray(layer.weight)
            out = np.empty((N, K // 256 * 144), np.uint8)
            quantize = self.function(
                "ggml_quantize_chunk",
                c_size_t,
                c_int,
                c_void_p,
                c_void_p,
                c_int64,
                c_int64,
                c_int64,
                c_void_p,
            )
            quantize(TYPES[qtype], values.ctypes.data, out.ctypes.data, 0, N, K, None)
            return out
        scale = np.repeat(layer.scale, layer.group_size // 32, axis=1)[..., None].view(np.uint8)
        codes = layer.codes.reshape(N, K // 32, 32)
        if qtype == "Q8_0":
            values = (codes.astype(np.int8) - 8).view(np.uint8)
        else:
            values = codes[..., :16] | (codes[..., 16:] << 4)
        return np.concatenate((scale, values), axis=-1).reshape(N, -1)

    def weight(self, blocks: np.ndarray, K: int) -> np.ndarray:
        """Values of Q4_K blocks, float32 [N, K]."""
        out = np.empty((len(blocks), K), np.float32)
        dequantize = self.function("dequantize_row_q4_K", None, c_void_p, c_void_p, c_int64)
        dequantize(blocks.ctypes.data, out.ctypes.data, out.size)
        return out

    def products(
        self, context: int, weights: list[int], K: int, M: int
    ) -> tuple[int, int, list[int]]:
        """The input, a graph with a product for each weight, and the products."""
        x = self.matrix(context, F32, K, M)
        results = [self.mul_mat(context, weight, x) for weight in weights]
        graph = self.graph(context, 2 * len(weights) + 16, False)
        for result in results:
            self.expand(graph, result)
        return x, graph, results


# llama.cpp says what it does with every tensor.
_QUIET = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)


def _array(address: int, M: int, N: int) -> np.ndarray:
    return np.ctypeslib.as_array(ctypes.cast(address, POINTER(c_float)), (M, N))


def llama_cpp(layers: list[Layer], threads: int, qtype: str) -> tuple[Run, str, np.ndarray | None]:
    """One graph with a product for each copy, all of the same input."""
    c = Ggml("llama_cpp", ("libggml-base.so", "libggml-cpu.so", "libggml.so"))
    c.function("ggml_log_set", None, c_void_p, c_void_p)(_QUIET, None)
    backend = c.function("ggml_backend_cpu_init", c_void_p)()
    c.function("ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)(backend, threads)
    N, K = layers[0].codes.shape
    allocate = c.function("ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
    release = c.function("ggml_backend_buffer_free", None, c_void_p)
    write = c.function("ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
    compute = c.function("ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
    plain = c.function("ggml_backend_cpu_buffer_type", c_void_p)()
    registry = c.function("ggml_backend_cpu_reg", c_void_p)()
    device = c.function("ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)(registry, 0)
    supports = c.function("ggml_backend_dev_supports_op", c_bool, c_void_p, c_void_p)
    address = c.function("ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)
    extra = address(registry, b"ggml_backend_dev_get_extra_bufts")
    layouts = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(extra)(device)
    name_of = c.function("ggml_backend_buft_name", c_char_p, c_void_p)
    blocks = [c.blocks(layer, qtype) for layer in layers]

    found, i = [], 0
    while layouts[i]:
        found.append(layouts[i])
        i += 1
    for layout in [*found, plain]:
        context = c.init(InitParams(HEADER, None, True))
        weights = [c.matrix(context, TYPES[qtype], K, N) for _ in layers]
        buffer = allocate(context, layout)
        trial = c.init(InitParams(HEADER, None, True))
        _, _, results = c.products(trial, weights[:1], K, 1)
        able = supports(device, results[0])
        c.free(trial)
        if able:
            break
        release(buffer)
        c.free(context)
    for weight, data in zip(weights, blocks, strict=True):
        write(weight, data.ctypes.data, 0, data.nbytes)
    kept: dict[int, tuple[int, int, int, list[int], int]] = {}

    def run(x: np.ndarray) -> list[np.ndarray]:
        M = len(x)
        if M not in kept:
            for context, *_, buffer in kept.values():
                release(buffer)
                c.free(context)
            kept.clear()
            context = c.init(InitParams(HEADER, None, True))
            made = c.products(context, weights, K, M)
            kept[M] = (context, *made, allocate(context, plain))
        _, tensor, graph, results, _ = kept[M]
        write(tensor, x.ctypes.data, 0, x.nbytes)
        if compute(backend, graph) != 0:
            raise RuntimeError("ggml_backend_graph_compute failed")
        return [_array(c.data(result), M, N) for result in results]

    weight = c.weight(blocks[0], K) if qtype == "Q4_K" else None
    label = f"{version('llama-cpp-python')} {name_of(layout).decode()}"
    return run, label, weight


def ik_llama_cpp(
    layers: list[Layer], threads: int, qtype: str
) -> tuple[Run, str, np.ndarray | None]:
    """As `llama_cpp`, by the functions that ggml had before it had backends."""
    c = Ggml("ik_llama_cpp", ("libggml.so",))
    N, K = layers[0].codes.shape
    blocks = [c.blocks(layer, qtype) for layer in layers]
    repack = c.function("iqk_repack_tensor", None, c_void_p)
    plan_of = c.function("ggml_graph_plan", Plan, c_void_p, c_int)
    compute = c.function("ggml_graph_compute", c_int, c_void_p, POINTER(Plan))
    context = c.init(InitParams(HEADER + sum(b.nbytes + 4096 for b in blocks), None, False))
    weights = []
    for data in blocks:
        weights.append(c.matrix(context, TYPES[qtype], K, N))
        ctypes.memmove(c.data(weights[-1]), data.ctypes.data, data.nbytes)
        repack(weights[-1])
    kept: dict[int, tuple[int, int, int, list[int], Plan, object]] = {}

    def run(x: np.ndarray) -> list[np.ndarray]:
        M = len(x)
        if M not in kept:
            for context, *_ in kept.values():
                c.free(context)
            kept.clear()
            size = HEADER + x.nbytes + len(weights) * (M * N * 4 + 4096)
            context = c.init(InitParams(size, None, False))
            made = c.products(context, weights, K, M)
            plan = plan_of(made[1], threads)
            work = np.empty(plan.work_size + 64, np.uint8)
            plan.work_data = -(-work.ctypes.data // 64) * 64
            kept[M] = (context, *made, plan, work)
        _, tensor, graph, results, plan, _ = kept[M]
        ctypes.memmove(c.data(tensor), x.ctypes.data, x.nbytes)
        if compute(graph, plan) != 0:
            raise RuntimeError("ggml_graph_compute failed")
        return [_array(c.data(result), M, N) for result in results]

    weight = c.weight(blocks[0], K) if qtype == "Q4_K" else None
    return run, version("ik-llama-cpp-python"), weight
