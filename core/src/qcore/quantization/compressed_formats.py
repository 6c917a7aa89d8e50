"""Which scheme a group of compressed-tensors' config describes: one function for each format.

========================  ======================  ===============================================
format                    weights                 activations
========================  ======================  ===============================================
pack-quantized            int, 2 to 8 bits        as they are; int8 or e4m3 per token
int-quantized             int, 2 to 8 bits        as they are; int8; e4m3 per token
float-quantized           e4m3                    as they are; e4m3; MX if the weights are
naive-quantized           either of these two     as there
nvfp4-pack-quantized      NVFP4                   as they are; NVFP4
mxfp4-pack-quantized      MXFP4                   as they are; MXFP4; MXFP8
mxfp8-quantized           MXFP8                   as they are; MXFP8
========================  ======================  ===============================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.facts.quant_key import (
    FP8_DTYPE,
    GroupShape,
    QuantKey,
    ScaleDesc,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticTensorSym,
    kMxfp4Dynamic,
    kMxfp8Dynamic,
)
from qcore.quantization.base import LinearScheme
from qcore.quantization.block_formats import (
    COMPRESSED_NVFP4,
    MxFp4Scheme,
    Mxfp8Scheme,
    NvFp4Scheme,
)
from qcore.quantization.compressed_args import TensorArgs
from qcore.quantization.compressed_schemes import (
    Int8Scheme,
    IntQuantizedScheme,
    PackQuantizedScheme,
)
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.integer import IntegerWeights

__all__ = ["read_scheme"]

_SPARSE = "2:4 sparse weights are not supported; export the checkpoint without sparsity"
_REFUSED = {
    "marlin-24": f"{_SPARSE} (marlin-24 is besides packed for one GPU kernel)",
    "sparse-24-bitmask": _SPARSE,
    "sparse-bitmask": "sparse weights are not supported; export the checkpoint without sparsity",
}


def read_scheme(group: Fields, format_name: str) -> LinearScheme:
    """The scheme of one of ``config_groups``.

    Args:
        group: its fields.
        format_name: of the whole checkpoint, for a group that names none.

    Raises:
        CheckpointError: a field is missing or has a value that means nothing.
        UnsupportedQuantizationError: the format, or what it is to hold, is not supported.
    """
    form = group.text("format", default=format_name).lower()
    if form in _REFUSED:
        raise UnsupportedQuantizationError(f"{group.where}: format {form!r}: {_REFUSED[form]}")
    if form not in _FORMATS:
        raise UnsupportedQuantizationError(
            f"{group.where}: format {form!r} is not supported; supported: {', '.join(_FORMATS)}"
        )
    group.refuse("output_activations", why="quantized outputs are not supported")
    weights = TensorArgs.read(group.values.get("weights"), f"{group.where}: weights")
    inputs = TensorArgs.read(
        group.values.get("input_activations"), f"{group.where}: input_activations"
    )
    if weights is None:
        raise UnsupportedQuantizationError(f"{group.where}: weights are not quantized")
    weights.require("dynamic", not weights.dynamic, "false")
    readers = _FORMATS[form]
    weights.require("type", weights.number in readers, f"{', '.join(readers)}, with {form}")
    return readers[weights.number](form, weights, inputs)


# -- integers ----------------------------------------------------------------------------------


def _integer(form: str, weights: TensorArgs, inputs: TensorArgs | None) -> LinearScheme:
    strategies = ("group", "channel", "tensor")
    weights.require("strategy", weights.strategy in strategies, ", ".join(strategies))
    one_scale = weights.strategy == "tensor"
    if one_scale and not weights.symmetric:
        raise weights.fields.unsupported("symmetric", "true, with one scale for the tensor")
    if inputs is not None and _is_int8_layer(form, weights, inputs):
        return _int8(weights, inputs)
    kind = PackQuantizedScheme if form == "pack-quantized" else IntQuantizedScheme
    return kind(
        IntegerWeights(
            bits=weights.bits,
            group_size=weights.group_size,
            zero_points=not weights.symmetric,
            has_g_idx=weights.act_order and weights.strategy == "group",
            inputs=None if inputs is None else _token_dtype(inputs),
        ),
        one_scale=one_scale,
    )


def _is_int8_layer(form: str, weights: TensorArgs, inputs: TensorArgs) -> bool:
    """Whether an int8 product does: bytes, and one scale for each row of them."""
    return (
        form != "pack-quantized"
        and inputs.number == "int"
        and inputs.bits == 8
        and weights.strategy in ("channel", "tensor")
        and weights.symmetric
    )


def _int8(weights: TensorArgs, inputs: TensorArgs) -> Int8Scheme:
    wanted = "token" if inputs.dynamic else "tensor"
    kind = "dynamic" if inputs.dynamic else "static"
    inputs.require("dynamic", not inputs.local, "true, false")
    inputs.require("strategy", inputs.strategy == wanted, f"{wanted}, for {kind} activations")
    return Int8Scheme(
        per_channel=weights.strategy == "channel",
        static=not inputs.dynamic,
        symmetric=inputs.symmetric,
        bits=weights.bits,
    )


def _token_dtype(inputs: TensorArgs) -> torch.dtype:
    """What each token is rounded to where the weights have groups, zero points or few bits."""
    with_weights = "with such integer weights"
    inputs.require("num_bits", inputs.bits == 8, f"8, {with_weights}")
    inputs.require("dynamic", inputs.dynamic and not inputs.local, f"true, {with_weights}")
    inputs.require("strategy", inputs.strategy == "token", f"token, {with_weights}")
    inputs.require("symmetric", inputs.symmetric, f"true, {with_weights}")
    return torch.int8 if inputs.number == "int" else FP8_DTYPE


# -- FP8 ---------------------------------------------------------------------------------------


def _float8(form: str, weights: TensorArgs, inputs: TensorArgs | None) -> LinearScheme:
    if weights.e8m0:
        return _mxfp8(form, weights, inputs)
    weights.require("num_bits", weights.bits == 8, f"8, with {form}")
    weights.require("symmetric", weights.symmetric, f"true, with {form}")
    groups = {
        "tensor": GroupShape.PER_TENSOR,
        "channel": GroupShape.PER_CHANNEL,
        "block": GroupShape(*weights.block) if weights.block else None,
        "group": GroupShape(1, weights.group_size),
    }
    group = groups.get(weights.strategy)
    if group is None:
        raise weights.fields.unsupported("strategy", f"{', '.join(groups)}, with {form}")
    key = None if inputs is None else _float8_inputs(inputs, blocks=group.row >= 1)
    return Float8Scheme(form, group, key)


def _float8_inputs(inputs: TensorArgs, blocks: bool) -> QuantKey:
    inputs.require("type", inputs.number == "float", "float, with FP8 weights")
    inputs.require("num_bits", inputs.bits == 8, "8, with FP8 weights")
    inputs.require("symmetric", inputs.symmetric, "true, with FP8 weights")
    inputs.require("dynamic", not inputs.local, "true, false, with FP8 weights")
    if not inputs.dynamic:
        inputs.require("strategy", inputs.strategy == "tensor", "tensor, for static activations")
        return kFp8StaticTensorSym
    if blocks:
        inputs.require("strategy", inputs.strategy == "group", "group, with weights in blocks")
        scale = ScaleDesc(torch.float32, False, GroupShape(1, inputs.group_size))
        return QuantKey(FP8_DTYPE, scale)
    keys = {"token": kFp8DynamicTokenSym, "tensor": kFp8DynamicTensorSym}
    supported = "token, tensor, with tensor or channel weights"
    inputs.require("strategy", inputs.strategy in keys, supported)
    return keys[inputs.strategy]


# -- the block formats -------------------------------------------------------------------------


def _nvfp4(form: str, weights: TensorArgs, inputs: TensorArgs | None) -> LinearScheme:
    for args in (weights, inputs):
        if args is None:
            continue
        args.require("type", args.number == "float", f"float, with {form}")
        args.require("num_bits", args.bits == 4, f"4, with {form}")
        args.require("strategy", args.strategy == "tensor_group", f"tensor_group, with {form}")
        args.require("group_size", args.group_size == 16, f"16, with {form}")
        args.require("symmetric", args.symmetric, f"true, with {form}")
    if inputs is not None:
        inputs.require("dynamic", inputs.local, f"'local', with {form}")
    return NvFp4Scheme(form, COMPRESSED_NVFP4, quantized_inputs=inputs is not None)


def _mxfp4(form: str, weights: TensorArgs, inputs: TensorArgs | None) -> LinearScheme:
    return MxFp4Scheme(form, _mx_inputs(form, weights, 4, inputs, (4, 8)))


def _mxfp8(form: str, weights: TensorArgs, inputs: TensorArgs | None) -> LinearScheme:
    return Mxfp8Scheme(form, _mx_inputs(form, weights, 8, inputs, (8,)))


def _mx_inputs(
    form: str,
    weights: TensorArgs,
    weight_bits: int,
    inputs: TensorArgs | None,
    input_bits: tuple[int, ...],
) -> QuantKey | None:
    for args, allowed in ((weights, (weight_bits,)), (inputs, input_bits)):
        if args is None:
            continue
        args.require("type", args.number == "float", f"float, with {form}")
        bits = " or ".join(map(str, allowed))
        args.require("num_bits", args.bits in allowed, f"{bits}, with {form}")
        args.require("strategy", args.strategy == "group", f"group, with {form}")
        args.require("group_size", args.group_size == 32, f"32, with {form}")
        args.require("symmetric", args.symmetric, f"true, with {form}")
    if inputs is None:
        return None
    inputs.require("dynamic", inputs.dynamic and not inputs.local, f"true, with {form}")
    return kMxfp4Dynamic if inputs.bits == 4 else kMxfp8Dynamic


_Reader = Callable[[str, TensorArgs, "TensorArgs | None"], LinearScheme]
_FORMATS: Mapping[str, Mapping[str, _Reader]] = {
    "pack-quantized": {"int": _integer},
    "int-quantized": {"int": _integer},
    "float-quantized": {"float": _float8},
    "naive-quantized": {"int": _integer, "float": _float8},
    "nvfp4-pack-quantized": {"float": _nvfp4},
    "mxfp4-pack-quantized": {"float": _mxfp4},
    "mxfp8-quantized": {"float": _mxfp8},
}
