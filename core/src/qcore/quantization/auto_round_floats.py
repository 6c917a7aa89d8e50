"""auto-round's floating-point formats: the layouts of compressed-tensors under its own config.

=========  ====================  =================================================================
data_type  weights               activations
=========  ====================  =================================================================
nv_fp      NVFP4                 as they are; NVFP4
mx_fp      MXFP4, MXFP8          as they are; MXFP4, MXFP8
fp         e4m3 per tensor (0),  as they are; static per tensor; dynamic per token, or per group
           channel (-1), block   where weights have blocks
=========  ====================  =================================================================

Source: what auto-round 0.16 writes with ``format="auto_round"``.
"""

from __future__ import annotations

import torch

from qcore.facts.quant_key import (
    FP8_DTYPE,
    GroupShape,
    QuantKey,
    ScaleDesc,
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
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme

__all__ = ["FLOAT_TYPES", "float_scheme"]


def float_scheme(fields: Fields) -> LinearScheme:
    """The scheme of a layer whose ``data_type`` is one of `FLOAT_TYPES`.

    Raises:
        CheckpointError: a field means nothing.
        UnsupportedQuantizationError: a field has a value that is not supported.
    """
    kind = fields.text("data_type", allowed=FLOAT_TYPES)
    if not fields.boolean("sym", default=True) or not fields.boolean("act_sym", default=True):
        name = "act_sym" if fields.boolean("sym", default=True) else "sym"
        raise fields.unsupported(name, f"true, with {kind}")
    return {"nv_fp": _nvfp4, "mx_fp": _mx, "fp": _fp8}[kind](fields)


def _act_bits(fields: Fields, *allowed: int) -> int | None:
    """Bits of rounded activations; None where they are not rounded."""
    bits = fields.integer("act_bits", allowed=(*allowed, 16, 32), default=16)
    return None if bits >= 16 else bits


def _nvfp4(fields: Fields) -> LinearScheme:
    fields.integer("bits", allowed=(4,))
    fields.integer("group_size", allowed=(16,))
    rounded = _act_bits(fields, 4) is not None
    if rounded:
        allowed = ("nv_fp4_with_static_gs",)
        fields.text("act_data_type", allowed=allowed, default=allowed[0])
        fields.integer("act_group_size", allowed=(16,), default=16)
    return NvFp4Scheme("auto-round NVFP4", COMPRESSED_NVFP4, quantized_inputs=rounded)


def _mx(fields: Fields) -> LinearScheme:
    bits = fields.integer("bits", allowed=(4, 8))
    fields.integer("group_size", allowed=(32,))
    act_bits = _act_bits(fields, 4, 8) if bits == 4 else _act_bits(fields, 8)
    if act_bits is None:
        inputs = None
    else:
        fields.text("act_data_type", allowed=("mx_fp", "mx_fp_rceil"), default="mx_fp")
        fields.integer("act_group_size", allowed=(32,), default=32)
        if not fields.boolean("act_dynamic", default=True):
            raise fields.unsupported("act_dynamic", "true, with mx_fp")
        inputs = kMxfp4Dynamic if act_bits == 4 else kMxfp8Dynamic
    kind = MxFp4Scheme if bits == 4 else Mxfp8Scheme
    return kind(f"auto-round MXFP{bits}", inputs)


def _fp8(fields: Fields) -> LinearScheme:
    fields.integer("bits", allowed=(8,))
    weights = _weights(fields)
    names = ("weight_scale", "weight_scale_inv")
    return Float8Scheme("auto-round FP8", weights, _inputs(fields, weights), scale_names=names)


def _weights(fields: Fields) -> GroupShape:
    size = fields.values.get("group_size")
    if isinstance(size, list):
        if len(size) != 2 or not all(type(side) is int and side >= 1 for side in size):
            raise fields.wrong("group_size", "two positive integers, such as [128, 128]")
        return GroupShape(*size)
    if type(size) is int and size in (0, -1):
        return GroupShape.PER_CHANNEL if size else GroupShape.PER_TENSOR
    raise fields.unsupported("group_size", "-1 (channel), 0 (tensor) or a block, with fp")


def _inputs(fields: Fields, weights: GroupShape) -> QuantKey | None:
    if _act_bits(fields, 8) is None:
        return None
    fields.text("act_data_type", allowed=("fp",), default="fp")
    block = weights.row >= 1 and weights.col >= 1
    if not fields.boolean("act_dynamic", default=True):
        fields.integer("act_group_size", allowed=(0,), default=0)
        return kFp8StaticTensorSym
    if not block:
        fields.integer("act_group_size", allowed=(-1,), default=-1)
        return kFp8DynamicTokenSym
    fields.integer("act_group_size", allowed=(weights.col,), default=weights.col)
    return QuantKey(FP8_DTYPE, ScaleDesc(torch.float32, False, GroupShape(1, weights.col)))


FLOAT_TYPES = ("nv_fp", "mx_fp", "fp")
"""What ``data_type`` may be besides ``int``."""
