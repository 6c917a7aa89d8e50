"""Write layers as bitsandbytes, HQQ, torchao and quanto do, by code that shares nothing with the
loaders. A function takes a float weight [N, K] and returns the checkpoint's tensors and the weight
that they stand for.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from float_writers import fp8_layer

NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
NF4 = torch.tensor([*NF4, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0])
FP4 = torch.tensor([0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12
FP4 = torch.cat([FP4, -FP4])


def blocks_of(weight, size):
    """The flattened weight in blocks [B, size], the last one filled up with zeros."""
    flat = weight.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


# -- bitsandbytes ------------------------------------------------------------------------------


def bnb_int8(weight):
    top = weight.abs().amax(1)
    codes = (weight * 127 / top[:, None]).round()
    tensors = {"weight": codes.to(torch.int8), "SCB": top}
    tensors["weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return tensors, codes * top[:, None] / 127


def bnb_4bit(weight, kind="nf4", double=False, size=64, outer_size=256, **state):
    book = NF4 if kind == "nf4" else FP4
    blocks = blocks_of(weight, size)
    top = blocks.abs().amax(1)
    tensors = {"weight.quant_map": book.clone()}
    says = {"quant_type": kind, "blocksize": size, "dtype": "float32", "shape": [*weight.shape]}
    if double:
        offset = float(top.mean())
        inner = torch.linspace(-1, 1, 256)
        outer_blocks = blocks_of(top - offset, outer_size)
        outer = outer_blocks.abs().amax(1)
        nearest = ((outer_blocks / outer[:, None])[..., None] - inner).abs().argmin(-1)
        codes = nearest.reshape(-1)[: len(top)]
        tensors["weight.absmax"] = codes.to(torch.uint8)
        tensors["weight.nested_absmax"] = outer
        tensors["weight.nested_quant_map"] = inner
        says |= {"nested_blocksize": outer_size, "nested_dtype": "float32"}
        says["nested_offset"] = offset
        top = (inner[nearest] * outer[:, None]).reshape(-1)[: len(top)] + offset
    else:
        tensors["weight.absmax"] = top
    codes = ((blocks / top[:, None])[..., None] - book).abs().argmin(-1)
    flat = codes.reshape(-1)[: weight.numel()]
    flat = torch.nn.functional.pad(flat, (0, len(flat) % 2))
    tensors["weight"] = (16 * flat[0::2] + flat[1::2]).to(torch.uint8).reshape(-1, 1)
    text = json.dumps({**says, **state}).encode()
    name = f"weight.quant_state.bitsandbytes__{kind}"
    tensors[name] = torch.tensor(list(text), dtype=torch.uint8)
    made = (book[codes] * top[:, None]).reshape(-1)[: weight.numel()].reshape(weight.shape)
    return tensors, made


def bnb_config(**changes):
    base = {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True}
    base |= {"_load_in_8bit": False, "_load_in_4bit": True, "llm_int8_threshold": 6.0}
    base |= {"llm_int8_skip_modules": None, "llm_int8_has_fp16_weight": False}
    base |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
    return {**base, "bnb_4bit_quant_storage": "uint8", **changes}


BNB_INT8 = {"load_in_8bit": True, "load_in_4bit": False}


# -- codes with float zero points --------------------------------------------------------------


def affine(blocks, bits):
    """codes, scale and zero point [B, 1] of ``w = (code - zero) * scale``; zero is no integer."""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    zero = -low / scale + 0.25
    codes = (blocks / scale + zero).round().clamp(0, 2**bits - 1)
    return codes, scale, zero


def stack_bytes(codes, bits):
    """Rows of codes to bytes: the first part of the rows in the high bits."""
    parts = codes.to(torch.int64).chunk(8 // bits)
    return sum(part << (8 - bits * (i + 1)) for i, part in enumerate(parts)).to(torch.uint8)


def hqq_layer(weight, bits=4, size=32, dtype=torch.float32, **more):
    blocks = blocks_of(weight, size)
    codes, scale, zero = affine(blocks, bits)
    scale, zero = scale.to(dtype), zero.to(dtype)
    if bits == 3:
        rows = torch.nn.functional.pad(codes.long(), (0, 0, 0, -len(codes) % 10)).chunk(10)
        packed = sum(r << (27 - 3 * i) for i, r in enumerate(rows)).to(torch.int32)
    else:
        packed = stack_bytes(codes, {8: 8, 6: 8, 5: 8}.get(bits, bits))
    tensors = {"W_q": packed, "scale": scale, "zero": zero, "shape": torch.tensor(weight.shape)}
    numbers = {"nbits": bits, "group_size": size, "axis": 1, **more}
    tensors |= {k: torch.tensor(v, dtype=torch.int32) for k, v in numbers.items()}
    for name in ("view_as_float", "quant_scale", "quant_zero", "offload_meta", "optimize"):
        tensors[name] = torch.tensor(int(name == "optimize"), dtype=torch.uint8)
    tensors["packing"] = torch.tensor([ord(c) for c in f"{bits}bit_u8"], dtype=torch.uint8)
    return tensors, ((codes - zero.float()) * scale.float()).reshape(weight.shape)


def hqq_params(bits=4, size=32, **changes):
    params = {"nbits": bits, "channel_wise": True, "group_size": size, "optimize": True}
    params |= {"round_zero": True, "axis": 1, "view_as_float": False, **changes}
    nothing = {"scale_quant_params": None, "zero_quant_params": None, "offload_meta": False}
    return {"weight_quant_params": params, **nothing}


def hqq_config(*args, **changes):
    made = hqq_params(*args, **changes)
    return {"quant_method": "hqq", "quant_config": made, "skip_modules": ["lm_head"]}


# -- torchao -----------------------------------------------------------------------------------


def ao_int(weight, bits=8, size=None, zero_points=False):
    N, K = weight.shape
    groups = weight.reshape(N, -1, size or K)
    half = 2 ** (bits - 1)
    low, high = groups.amin(-1), groups.amax(-1)
    if zero_points:
        scale = (high - low) / (2 * half - 1)
        zero = (-half - low / scale).round().clamp(-half, half - 1)
    else:
        scale = groups.abs().amax(-1) / (half - 0.5)
        zero = torch.zeros_like(scale)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(-half, half - 1)
    tensors = {
        "_weight_qdata": codes.reshape(N, K).to(torch.int8),
        "_weight_scale": scale,
        "_weight_zero_point": zero.to(torch.int8),
    }
    return tensors, ((codes - zero[..., None]) * scale[..., None]).reshape(N, K)


def ao_int4(weight, size=32):
    N, K = weight.shape
    groups = weight.reshape(N, -1, size)
    low = groups.amin(-1)
    scale = (groups.amax(-1) - low) / 15
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15) - 8
    zero = low + 8 * scale
    flat = codes.reshape(N, K).to(torch.int8)
    tensors = {
        "_weight_qdata": (flat[:, 0::2] & 15) | (flat[:, 1::2] << 4),
        "_weight_scale": scale.t().contiguous(),
        "_weight_zero_point": zero.t().contiguous(),
    }
    return tensors, (codes * scale[..., None] + zero[..., None]).reshape(N, K)


def ao_float8(weight, **how):
    tensors, made = fp8_layer(weight, **how)
    scale = tensors["weight_scale"]
    scale = scale.reshape(1, 1) if scale.dim() == 0 else scale
    return {"_weight_qdata": tensors["weight"], "_weight_scale": scale}, made


def ao(kind, **data):
    """A config of torchao's, as it encodes them."""
    return {"_type": kind, "_version": 2, "_data": data}


def ao_word(kind, name):
    return {"_type": kind, "_data": name}


def ao_config(kind, version=2, **data):
    made = {**ao(kind, **data), "_version": version}
    base = {"quant_method": "torchao", "quant_type": {"default": made}}
    base |= {"modules_to_not_convert": None, "include_input_output_embeddings": False}
    return {**base, "untie_embedding_weights": False}


def round_int8(x):
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127) * scale


# -- quanto ------------------------------------------------------------------------------------


def quanto_bytes(weight, float8=False):
    if float8:
        tensors, made = fp8_layer(weight, channel=True)
        codes, scale = tensors["weight"], tensors["weight_scale"]
    else:
        scale = weight.abs().amax(1, keepdim=True) / 127
        codes = (weight / scale).round().to(torch.int8)
        made = codes * scale
    return {"weight._data": codes, "weight._scale": scale, **quanto_unused()}, made


def quanto_unused():
    return {name: torch.tensor(1.0) for name in ("input_scale", "output_scale")}


def quanto_bits(weight, bits=4, size=32, integer=False):
    blocks = weight.reshape(-1, size)
    codes, scale, zero = affine(blocks, bits)
    shift = zero.round().to(torch.int8) if integer else zero * scale
    offset = shift * scale if integer else shift
    made = (codes * scale - offset).reshape(weight.shape)
    rows = -(-len(codes) * bits // 8)
    packed = np.zeros((rows, size), np.uint8)
    for i, row in enumerate(codes.numpy().astype(np.uint8)):
        packed[i % rows] |= row << (bits * (i // rows))
    tensors = {"weight._data._data": torch.from_numpy(packed), "weight._scale": scale}
    return {**tensors, "weight._shift": shift, **quanto_unused()}, made


def quanto_map(model, kind):
    return {name: {"weights": kind, "activations": "none"} for name in model}
