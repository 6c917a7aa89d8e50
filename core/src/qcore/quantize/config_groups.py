"""A `QuantizeScheme` as compressed-tensors describes it, and the tensors that a layer of it has.

What the tensors hold is in `qcore.quantization.compressed_schemes`, `float8` and `block_formats`,
which read them. Of compressed-tensors' presets, ``fp8`` is FP8_DYNAMIC, ``fp8-static`` FP8,
``fp8-block`` FP8_BLOCK, ``int8`` W8A8, and ``...-weight-only`` of the block formats the A16.
"""

from __future__ import annotations

from typing import Any

import torch

from qcore.quantize.scheme import FP8_BLOCK, QuantizeScheme

__all__ = ["config_group", "format_name", "input_tensors", "weight_tensors"]

_FP8 = torch.float8_e4m3fn
_FORMATS = {
    "fp8": "float-quantized",
    "fp8-tensor": "float-quantized",
    "fp8-block": "float-quantized",
    "mxfp8": "mxfp8-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_SCALE_DTYPES = {
    "mxfp8": "torch.uint8",
    "mxfp4": "torch.uint8",
    "nvfp4": "torch.float8_e4m3fn",
}

Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape, by the name after the layer's."""


def format_name(scheme: QuantizeScheme) -> str:
    """The name of the format in compressed-tensors."""
    if scheme.weights == "int":
        return "pack-quantized" if scheme.packed else "int-quantized"
    return _FORMATS[scheme.weights]


def weight_tensors(scheme: QuantizeScheme, N: int, K: int, dtype: torch.dtype) -> Tensors:
    """The tensors of a rounded weight [N, K] of the dtype ``dtype``."""
    kind, G = scheme.weights, scheme.groups(K)
    if scheme.packed:
        pack = 32 // scheme.bits
        tensors: Tensors = {
            "weight_packed": (torch.int32, (N, -(-K // pack))),
            "weight_scale": (dtype, (N, G)),
            "weight_shape": (torch.int64, (2,)),
        }
        if not scheme.symmetric:
            tensors["weight_zero_point"] = (torch.int32, (-(-N // pack), G))
        return tensors
    if kind == "int":
        return {"weight": (torch.int8, (N, K)), "weight_scale": (dtype, (N, 1))}
    if kind == "mxfp8":
        return {"weight": (_FP8, (N, K)), "weight_scale": (torch.uint8, (N, G))}
    if kind == "mxfp4":
        return {"weight_packed": (torch.uint8, (N, K // 2)), "weight_scale": (torch.uint8, (N, G))}
    if kind == "nvfp4":
        return {
            "weight_packed": (torch.uint8, (N, K // 2)),
            "weight_scale": (_FP8, (N, G)),
            "weight_global_scale": (torch.float32, (1,)),
        }
    shapes = {"fp8": (N, 1), "fp8-tensor": (1,), "fp8-block": (-(-N // FP8_BLOCK), G)}
    # A float16 has no 2e-5, which is the scale of a weight of 0.01.
    scale = torch.float32 if dtype == torch.float16 else dtype
    return {"weight": (_FP8, (N, K)), "weight_scale": (scale, shapes[kind])}


def input_tensors(scheme: QuantizeScheme) -> Tensors:
    """The tensors that calibration makes for a layer."""
    if not scheme.calibrated:
        return {}
    if scheme.weights == "nvfp4":
        return {"input_global_scale": (torch.float32, (1,))}
    tensors: Tensors = {"input_scale": (torch.float32, (1,))}
    if not scheme.symmetric_inputs:
        tensors["input_zero_point"] = (torch.int8, (1,))
    return tensors


def config_group(
    scheme: QuantizeScheme, targets: list[str], *, searched: bool, observer: str = "minmax"
) -> dict[str, Any]:
    """The entry of ``config_groups`` for the layers that ``targets`` name.

    Args:
        scheme: of these layers.
        targets: names of modules, or of their class.
        searched: whether the weights' scales were chosen by the squared error.
        observer: with which the activations' scales were found, if they were calibrated.
    """
    return {
        "format": format_name(scheme),
        "input_activations": _inputs(scheme, observer),
        "output_activations": None,
        "targets": targets,
        "weights": _weights(scheme, searched),
    }


def _weights(scheme: QuantizeScheme, searched: bool) -> dict[str, Any]:
    strategies = {"fp8": "channel", "fp8-tensor": "tensor", "fp8-block": "block"}
    strategies |= {"mxfp8": "group", "mxfp4": "group", "nvfp4": "tensor_group"}
    kind = scheme.weights
    return _arguments(
        scheme,
        bits=scheme.bits,
        strategy=strategies.get(kind, "channel" if scheme.group_size == -1 else "group"),
        symmetric=scheme.symmetric,
        dynamic=False,
        group_size=None if scheme.group_size == -1 else scheme.group_size,
        block=[FP8_BLOCK, FP8_BLOCK] if kind == "fp8-block" else None,
        observer="memoryless_mse" if searched else "memoryless_minmax",
    )


def _inputs(scheme: QuantizeScheme, observer: str) -> dict[str, Any] | None:
    if scheme.inputs is None:
        return None
    dynamic: bool | str = scheme.inputs == "dynamic"
    strategies = {"int": "token", "fp8": "token", "fp8-tensor": "tensor", "fp8-block": "group"}
    strategies |= {"mxfp8": "group", "mxfp4": "group", "nvfp4": "tensor_group"}
    strategy = strategies[scheme.weights]
    group_size: int | None = None
    if scheme.weights == "nvfp4":
        dynamic, group_size = "local", scheme.group_size
    elif not dynamic:
        strategy = "tensor"
    elif strategy == "group":
        group_size = FP8_BLOCK if scheme.weights == "fp8-block" else scheme.group_size
    return _arguments(
        scheme,
        bits=scheme.bits,
        strategy=strategy,
        symmetric=scheme.symmetric_inputs,
        dynamic=dynamic,
        group_size=group_size,
        block=None,
        observer=observer if scheme.calibrated else None,
    )


def _arguments(
    scheme: QuantizeScheme,
    *,
    bits: int,
    strategy: str,
    symmetric: bool,
    dynamic: bool | str,
    group_size: int | None,
    block: list[int] | None,
    observer: str | None,
) -> dict[str, Any]:
    """``QuantizationArgs`` of compressed-tensors, every field written out."""
    scale_dtype = _SCALE_DTYPES.get(scheme.weights)
    return {
        "actorder": None,
        "block_structure": block,
        "dynamic": dynamic,
        "group_size": group_size,
        "num_bits": bits,
        "observer": observer,
        "observer_kwargs": {},
        "scale_dtype": scale_dtype,
        "strategy": strategy,
        "symmetric": symmetric,
        "type": "int" if scheme.weights == "int" else "float",
        "zp_dtype": scale_dtype if symmetric else "torch.int8",
    }
