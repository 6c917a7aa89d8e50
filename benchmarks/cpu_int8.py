"""The W8A8 contenders of `cpu_linear.py`: qcore's kernel, torch's dynamic linear, ONNX Runtime.

Peers quantize activations by tensor, to unsigned bytes; qcore's kernel by token. torch's fbgemm
takes seven bits (``reduce_range``), as it must where the processor has no VNNI.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from cpu_layers import Int8Layer

__all__ = ["TORCH_ENGINES", "int8_tensors", "torch_dynamic"]

TORCH_ENGINES = {"fbgemm": True, "onednn": False}
"""torch's engines; whether each reduces the range of activations."""

Run = Callable[[torch.Tensor, int], torch.Tensor]


def int8_tensors(layer: Int8Layer) -> dict[str, torch.Tensor]:
    """The canonical tensors of the layer."""
    return {
        "weight": torch.from_numpy(layer.codes),
        "weight_scale": torch.from_numpy(layer.scale)[:, None],
    }


def torch_dynamic(engine: str, layers: list[Int8Layer]) -> Run:
    """``torch.ops.quantized.linear_dynamic``, packed by ``engine`` once for each layer."""
    reduce_range = TORCH_ENGINES[engine]
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    packed = []
    for layer in layers:
        scale = torch.from_numpy(layer.scale.astype(np.float64))
        weight = torch._make_per_channel_quantized_tensor(
            torch.from_numpy(layer.codes), scale, torch.zeros(len(scale), dtype=torch.long), 0
        )
        packed.append(torch.ops.quantized.linear_prepack(weight, None))
    torch.backends.quantized.engine = before

    def run(x: torch.Tensor, turn: int) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(x, packed[turn % len(packed)], reduce_range)

    return run
