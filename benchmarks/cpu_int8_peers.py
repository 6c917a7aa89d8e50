"""ONNX Runtime's W8A8 layer for `cpu_linear.py`, in a process and an environment of its own.

The lines that it reads and writes are those of `cpu_peers.py`. "make" knows ``saturating`` too: all
weights at 127, and the input that goes with them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cpu_layers import Int8Layer, activations, make_int8, make_saturating, saturating_input

Run = Callable[[np.ndarray], list[np.ndarray]]


def onnxruntime(layers: list[Int8Layer], threads: int) -> tuple[Run, str]:
    """One session with a DynamicQuantizeMatMul node for each copy, all of the same input."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, outputs = [], [], []
    for i, layer in enumerate(layers):
        N, K = layer.codes.shape
        weights += [
            numpy_helper.from_array(np.ascontiguousarray(layer.codes.T), f"b{i}"),
            numpy_helper.from_array(layer.scale, f"s{i}"),
            numpy_helper.from_array(np.zeros(N, np.int8), f"z{i}"),
        ]
        inputs = ["x", f"b{i}", f"s{i}", f"z{i}"]
        nodes.append(
            helper.make_node("DynamicQuantizeMatMul", inputs, [f"y{i}"], domain="com.microsoft")
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", N]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", K])
    graph = helper.make_graph(nodes, "g", [x], outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda rows: session.run(None, {"x": rows}), ort.__version__


def main() -> None:
    """Serve until the input ends."""
    run: Run | None = None
    copies, rows = 1, activations
    for line in sys.stdin:
        ask = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if ask["do"] == "make":
                copies, N, K = ask["copies"], ask["N"], ask["K"]
                if ask.get("saturating"):
                    layers, rows = [make_saturating(N, K)] * copies, saturating_input
                else:
                    layers = [make_int8(N, K, seed) for seed in range(copies)]
                run, answer["version"] = onnxruntime(layers, ask["threads"])
                answer["bytes"] = layers[0].codes.nbytes + layers[0].scale.nbytes
                del layers
            elif run is not None:
                x = rows(ask["M"], ask["K"])
                begin = time.perf_counter()
                results = run(x)
                answer["seconds"] = (time.perf_counter() - begin) / copies
                if ask["do"] == "result":
                    np.save(ask["file"], results[0])
        except Exception as error:  # a foreign library may raise anything
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
