"""Other libraries' 4-bit layers for `cpu_linear.py`, in a process and an environment of their own.

Reads a JSON object a line from standard input, answers with one a line:
``{"do": "make", "peer", "N", "K", "group_size", "copies", "threads"}`` -> ``{"bytes", "version"}``;
``{"do": "run", "M", "K"}`` -> ``{"seconds"}`` of one layer;
``{"do": "result", "M", "K", "file"}`` writes the first copy's result to a .npy file; where the
format cannot hold the layer's numbers, it answers with what its own weight gives: ``{"exact"}``, a
second file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import ggml_peers
import numpy as np
from cpu_layers import Layer, activations, make

Run = Callable[[np.ndarray], list[np.ndarray]]


def onnxruntime(layers: list[Layer], threads: int, accuracy_level: int) -> tuple[Run, str]:
    """One session with a MatMulNBits node for each copy, all of the same input."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, outputs = [], [], []
    for i, layer in enumerate(layers):
        N, K = layer.codes.shape
        blob = layer.packed.reshape(N, K // layer.group_size, layer.group_size // 2)
        weights += [
            numpy_helper.from_array(blob, f"b{i}"),
            numpy_helper.from_array(layer.scale.astype(np.float32).reshape(-1), f"s{i}"),
        ]
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["x", f"b{i}", f"s{i}"],
                [f"y{i}"],
                domain="com.microsoft",
                K=K,
                N=N,
                bits=4,
                block_size=layer.group_size,
                accuracy_level=accuracy_level,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", N]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", K])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Or its threads would be in the way of whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x}), ort.__version__


def openvino(layers: list[Layer], threads: int) -> tuple[Run, str]:
    """One model with a compressed u4 weight for each copy, all of the same input."""
    import openvino as ov
    from openvino import opset13 as op

    K = layers[0].codes.shape[1]
    x = op.parameter([-1, K], ov.Type.f32)
    results, kept = [], []
    for layer in layers:
        N, size = layer.codes.shape[0], layer.group_size
        shape = [N, K // size, size]
        kept.append(layer.packed.reshape(-1))  # as long as the model: the tensor does not own it
        packed = ov.Tensor(kept[-1], ov.Shape(shape), ov.Type.u4)
        codes = op.convert(op.constant(packed), "f16")
        zero = op.constant(np.full((1, 1, 1), 8, np.float16))
        scale = op.constant(layer.scale.reshape(N, K // size, 1))
        weight = op.multiply(op.subtract(codes, zero), scale)
        weight = op.convert(op.reshape(weight, np.array([N, K]), False), "f32")
        results.append(op.matmul(x, weight, False, True))
    model = ov.Model(results, [x])
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(x: np.ndarray) -> list[np.ndarray]:
        request.infer([x], share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(i).data for i in range(len(kept))]

    return run, ov.__version__


def ggml(
    library: Callable[[list[Layer], int, str], tuple[Run, str, np.ndarray | None]], qtype: str
) -> Make:
    """A maker for a type of blocks."""
    return lambda layers, threads: library(layers, threads, qtype)


Make = Callable[[list[Layer], int], "tuple[Run, str] | tuple[Run, str, np.ndarray | None]"]
PEERS: dict[str, Make] = {
    "ORT accuracy_level=0": lambda layers, threads: onnxruntime(layers, threads, 0),
    "ORT accuracy_level=4": lambda layers, threads: onnxruntime(layers, threads, 4),
    "OpenVINO float32": openvino,
    **{f"llama.cpp {t}": ggml(ggml_peers.llama_cpp, t) for t in ggml_peers.TYPES},
    **{f"ik_llama.cpp {t}": ggml(ggml_peers.ik_llama_cpp, t) for t in ggml_peers.TYPES},
}


def bytes_of(peer: str, layer: Layer) -> int:
    """Of a layer's weight."""
    for qtype, size in (("Q4_0", 18), ("Q8_0", 34), ("Q4_K", 18)):  # of 32 weights
        if peer.endswith(qtype):
            return int(layer.codes.size // 32 * size)
    return int(layer.packed.nbytes + layer.scale.nbytes)


def main() -> None:
    """Serve until the input ends."""
    run: Run | None = None
    copies, own = 1, None  # weight, where it is not the layer's
    for line in sys.stdin:
        ask = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if ask["do"] == "make":
                copies = ask["copies"]
                shape = (ask["N"], ask["K"], ask["group_size"])
                layers = [make(*shape, seed) for seed in range(copies)]
                run, answer["version"], *rest = PEERS[ask["peer"]](layers, ask["threads"])
                own = rest[0] if rest else None
                answer["bytes"] = bytes_of(ask["peer"], layers[0])
                del layers
            elif run is not None:
                x = activations(ask["M"], ask["K"])
                begin = time.perf_counter()
                results = run(x)
                answer["seconds"] = (time.perf_counter() - begin) / copies
                if ask["do"] == "result":
                    np.save(ask["file"], results[0])
                    if own is not None:
                        answer["exact"] = ask["file"].replace(".npy", "-exact.npy")
                        np.save(answer["exact"], x.astype(np.float64) @ own.T.astype(np.float64))
        except Exception as error:  # a foreign library may raise anything
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
