"""What a call of a quantized layer costs the processor that launches it.

    python benchmarks/cuda_host.py OUT.json

Layers of 1024 x 1024, called 40 times without waiting for the GPU, which had nothing to do before:
what is timed is Python, dispatcher, checks, memory of the result and launches. Turn by turn,
medians. One row, which 8-bit layers quantize in the kernel that multiplies, and 32, where that is a
launch of its own. "layer" is a call of the module, "kernel" its `apply_weights`. Beside them what
torch's own calls cost: a tensor made, an operation of one launch, a product, a linear layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import qcore
import torch
from environment import environment
from qcore.facts.quant_key import kFp8DynamicTokenSym, kFp8StaticChannelSym
from qcore.quantization.base import CanonicalLinear
from qcore.quantization.linear import QuantizedLinear
from qcore.testing import random_tensors

SIZE = 1024
ROWS = (1, 32)
CALLS, WARM, ROUNDS = 40, 10, 200
BFLOAT = torch.bfloat16


def layer_of(config: Any) -> QuantizedLinear:
    """A layer of random weights, with the kernel that is selected here."""
    tensors = {name: tensor.cuda() for name, tensor in random_tensors(config).items()}
    return QuantizedLinear(CanonicalLinear(config, tensors))


def contenders() -> dict[str, Callable[[], Any]]:
    """What is called, by name."""
    shape = (SIZE, SIZE)
    x = torch.randn(1, SIZE, device="cuda").to(BFLOAT)
    weight = torch.randn(shape, device="cuda").to(BFLOAT)
    linear = torch.nn.Linear(SIZE, SIZE, bias=False, dtype=BFLOAT, device="cuda")
    layers = {
        "int4, groups of 128": qcore.MPLinearLayerConfig(
            shape, shape, qcore.scalar_types.uint4b8, BFLOAT, 128, False
        ),
        "FP8, quantized per token": qcore.FP8ScaledMMLinearLayerConfig(
            kFp8StaticChannelSym, kFp8DynamicTokenSym, shape, BFLOAT, BFLOAT
        ),
        "FP8 weights only": qcore.FP8ScaledMMLinearLayerConfig(
            kFp8StaticChannelSym, None, shape, BFLOAT, BFLOAT
        ),
        "int8, quantized per token": qcore.Int8ScaledMMLinearLayerConfig(
            False, True, True, weight_shape=shape, input_dtype=BFLOAT
        ),
    }
    found: dict[str, Callable[[], Any]] = {
        "torch.empty": lambda: torch.empty(1, SIZE, dtype=BFLOAT, device="cuda"),
        "x + x": lambda: x + x,
        "x @ weight": lambda: x @ weight,
        "torch.nn.Linear": lambda: linear(x),
    }
    for name, config in layers.items():
        layer = layer_of(config)
        for M in ROWS:
            rows = torch.randn(M, SIZE, device="cuda").to(BFLOAT)
            apply = partial(layer.kernel.apply_weights, layer)
            for what, call in (("layer", layer), ("kernel", apply)):
                full = f"{name}: {type(layer.kernel).__name__}, M={M}, {what}"
                found[full] = lambda call=call, rows=rows: call(rows)
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    args = parser.parse_args()
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        calls = contenders()
        for round_ in range(WARM + ROUNDS):
            for name, call in calls.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                took = (time.perf_counter() - start) / CALLS * 1e6
                if round_ >= WARM:
                    times.setdefault(name, []).append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:<78} {value:6.2f} us")
    if args.output:
        about = {"environment": environment("qcore-cuda"), "device": torch.cuda.get_device_name()}
        text = json.dumps({**about, "size": SIZE, "us": medians}, indent=1)
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
