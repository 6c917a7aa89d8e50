"""`process_weights`: pack a layer's weights, or leave the layer as it was."""

from __future__ import annotations

from typing import Any

import torch

from qcore.kernels.base import PACKED_BY, LinearKernel

__all__ = ["process_weights"]


def process_weights(kernel: LinearKernel[Any], layer: torch.nn.Module) -> None:
    """Run ``kernel.process_weights_after_loading(layer)`` as one transaction.

    A second call for the same kernel changes nothing. If the kernel raises, every parameter, buffer
    and attribute of the layer is what it was before (a kernel that writes into a tensor's memory in
    place is beyond this; kernels with `LinearKernel.pack_weights` never do).
    """
    if getattr(layer, PACKED_BY, None) is kernel:
        return
    attributes = dict(layer.__dict__)
    tables = {name: dict(attributes[name]) for name in ("_parameters", "_buffers", "_modules")}
    data = {
        id(tensor): (tensor, tensor.data, dict(tensor.__dict__))
        for tensor in (*tables["_parameters"].values(), *tables["_buffers"].values())
        if tensor is not None
    }
    try:
        kernel.process_weights_after_loading(layer)
    except BaseException:
        layer.__dict__.clear()
        layer.__dict__.update(attributes)
        for name, table in tables.items():
            layer.__dict__[name].clear()
            layer.__dict__[name].update(table)
        for tensor, values, marks in data.values():
            tensor.data = values
            tensor.__dict__.clear()
            tensor.__dict__.update(marks)
        raise
    setattr(layer, PACKED_BY, kernel)
