"""Handle a layer's parameters: replace, annotate, permute. vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qcore.errors import WeightError

__all__ = ["permute_param_layout_", "replace_parameter", "set_weight_attrs"]

_CARRIED = ("weight_loader", "input_dim", "output_dim", "packed_dim", "packed_factor")


def replace_parameter(layer: torch.nn.Module, name: str, new: torch.Tensor) -> None:
    """Make ``new`` the layer's parameter ``name``.

    Where shape, strides, dtype and device are those of the old one, the values are copied into it,
    so that a captured CUDA graph stays valid. The annotations of the old one are kept.
    """
    data = new.detach()
    old = getattr(layer, name, None)
    if (
        isinstance(old, torch.Tensor)
        and old.data_ptr() != data.data_ptr()
        and (old.shape, old.stride(), old.dtype, old.device)
        == (data.shape, data.stride(), data.dtype, data.device)
    ):
        old.data.copy_(data)
        return
    parameter = torch.nn.Parameter(data, requires_grad=False)
    for source in (old, new):
        for attribute in _CARRIED:
            if hasattr(source, attribute) and not hasattr(parameter, attribute):
                setattr(parameter, attribute, getattr(source, attribute))
    if name in layer._buffers:
        del layer._buffers[name]
    elif name not in layer._parameters and hasattr(layer, name):
        delattr(layer, name)
    layer.register_parameter(name, parameter)


def set_weight_attrs(weight: torch.Tensor, attrs: Mapping[str, Any] | None) -> None:
    """Annotate a parameter.

    Raises:
        WeightError: it has one of the attributes already.
    """
    for name, value in (attrs or {}).items():
        if hasattr(weight, name):
            raise WeightError(f"the parameter has an attribute {name!r} already")
        setattr(weight, name, value)


def permute_param_layout_(
    param: torch.Tensor, input_dim: int, output_dim: int, **kwargs: Any
) -> torch.Tensor:
    """Transpose a two-dimensional parameter so that its dimensions lie where they are asked for.

    The parameter's annotations (``input_dim``, ``output_dim``, ``packed_dim``) say where they lie
    now; afterwards they say where they lie then.

    Args:
        param: annotated with ``input_dim`` and, if it has two dimensions, ``output_dim``.
        input_dim: where K shall be.
        output_dim: where N shall be.
        kwargs: ``packed_dim``: where the packed dimension must be in the end.

    Raises:
        WeightError: the annotations are missing or the packed dimension ends up elsewhere.
    """
    here = getattr(param, "input_dim", None)
    if here is None:
        here = 1 - getattr(param, "output_dim", -1)
    if here not in (0, 1) or param.dim() != 2 or {input_dim, output_dim} != {0, 1}:
        raise WeightError(
            "permute_param_layout_ needs a two-dimensional parameter with input_dim or output_dim "
            f"annotated, got shape {list(param.shape)}, input_dim={here}"
        )
    swap = here != input_dim
    packed_dim = getattr(param, "packed_dim", None)
    if swap and packed_dim is not None:
        packed_dim = 1 - packed_dim
    wanted = kwargs.get("packed_dim")
    if wanted is not None and packed_dim != wanted:
        raise WeightError(f"packed_dim would be {packed_dim}, the kernel needs {wanted}")
    if swap:
        param.data = param.data.t()
    for name, value in (
        ("input_dim", input_dim),
        ("output_dim", output_dim),
        ("packed_dim", packed_dim),
    ):
        if hasattr(param, name):
            # vLLM's parameters keep them in private attributes behind read-only properties.
            private = f"_{name}"
            setattr(param, private if hasattr(param, private) else name, value)
    return param
