"""Write small checkpoints in each format, by code that shares nothing with the loaders.

`quantize` rounds a weight; the ``write_*`` functions lay the same numbers out as a format says; the
float model with the rounded weights is what a loaded checkpoint must agree with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Rounded:
    """codes [N, K], zeros [N, G] (0 to 2**bits - 1), scale [N, G], group of each input [K]."""

    bits: int
    codes: np.ndarray
    zeros: np.ndarray
    scale: np.ndarray
    groups: np.ndarray

    def weight(self) -> torch.Tensor:
        codes = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.groups]
        return torch.from_numpy(codes * self.scale.astype(np.float32)[:, self.groups])


def quantize(weight, bits=4, group=32, sym=True, permute=False, seed=0, scale_dtype=np.float16):
    weight = weight.detach().float().numpy()
    N, K = weight.shape
    size = K if group == -1 else group
    groups = np.arange(K) // size
    if permute:
        groups = np.random.default_rng(seed).permutation(groups)
    G, top = groups.max() + 1, 2**bits - 1
    zeros, scale = np.zeros((N, G), np.int64), np.zeros((N, G), scale_dtype)
    for g in range(G):
        part = weight[:, groups == g]
        if sym:
            scale[:, g] = np.abs(part).max(1) / (top / 2)
            zeros[:, g] = 2 ** (bits - 1)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale[:, g] = (high - low) / top
            zeros[:, g] = np.clip(np.round(-low / scale[:, g].astype(np.float32)), 0, top)
    spread = scale.astype(np.float32)[:, groups]
    codes = np.clip(np.round(weight / spread) + zeros[:, groups], 0, top).astype(np.int64)
    return Rounded(bits, codes, zeros, scale, groups)


def pack(codes: np.ndarray, bits: int, order=None) -> torch.Tensor:
    """[R, C] to int32 [R, C / (32 / bits)], along the last dimension, lowest bits first."""
    factor = 32 // bits
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // factor) * factor), np.uint64)
    padded[:, :columns] = codes
    words = np.zeros((rows, padded.shape[1] // factor), np.uint64)
    for nibble in range(factor):
        source = order[nibble] if order else nibble
        words |= padded[:, source::factor] << np.uint64(bits * nibble)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def pack_dense(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[R, C] to int32 [R, ceil(C * bits / 32)], as one string of bits."""
    rows = codes.shape[0]
    string = ((codes[..., None].astype(np.int64) >> np.arange(bits)) & 1).reshape(rows, -1)
    string = np.pad(string, ((0, 0), (0, -string.shape[1] % 32))).reshape(rows, -1, 32)
    words = (string.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


# What GPTQModel takes off the words of zero points, one after the other.
GPTQMODEL_ONES = {
    2: (0x55555555,),
    3: (
        0b00100100100100100100100100100100,
        0b10010010010010010010010010010010,
        0b01001001001001001001001001001001,
    ),
    4: (0x11111111,),
    8: (0x01010101,),
}


def gptq_tensors(
    r: Rounded, v2: bool = False, g_idx: bool = True, by_autogptq: bool = False
) -> dict[str, torch.Tensor]:
    qzeros = pack_dense(r.zeros.T, r.bits)
    if by_autogptq:
        qzeros = pack_dense(r.zeros.T - 1, r.bits)
    elif not v2:
        ones = np.resize(np.array(GPTQMODEL_ONES[r.bits], np.int64), qzeros.shape[1])
        words = qzeros.numpy().view(np.uint32).astype(np.int64) - ones
        qzeros = torch.from_numpy((words & 0xFFFFFFFF).astype(np.uint32).view(np.int32).copy())
    found = {
        "qweight": pack_dense(r.codes, r.bits).t().contiguous(),
        "qzeros": qzeros,
        "scales": torch.from_numpy(r.scale.T.copy()),
    }
    return {**found, "g_idx": torch.from_numpy(r.groups.astype(np.int32))} if g_idx else found


def awq_tensors(r: Rounded) -> dict[str, torch.Tensor]:
    return {
        "qweight": pack(r.codes.T, 4, AWQ_ORDER),
        "qzeros": pack(r.zeros.T, 4, AWQ_ORDER),
        "scales": torch.from_numpy(r.scale.T.copy()),
    }


def packed_tensors(
    r: Rounded, sym: bool, g_idx: bool = False, pack=pack
) -> dict[str, torch.Tensor]:
    N, K = r.codes.shape
    found = {
        "weight_packed": pack(r.codes, r.bits),
        "weight_scale": torch.from_numpy(r.scale.copy()),
        "weight_shape": torch.tensor([N, K]),
    }
    if not sym:
        found["weight_zero_point"] = pack(r.zeros.T, r.bits).t().contiguous()
    if g_idx:
        found["weight_g_idx"] = torch.from_numpy(r.groups.astype(np.int32))
    return found


def int8_tensors(r: Rounded) -> dict[str, torch.Tensor]:
    half = 1 << (r.bits - 1)
    return {
        "weight": torch.from_numpy((r.codes - half).astype(np.int8)),
        "weight_scale": torch.from_numpy(r.scale.copy()),
    }


# -- the quantization_config of each format ----------------------------------------------------


def gptq_config(**changes):
    base = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    return {**base, "lm_head": False, **changes}


def awq_config(**changes):
    base = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    return {**base, "version": "gemm", "modules_to_not_convert": ["lm_head"], **changes}


def auto_round_config(packing="auto_round:auto_gptq", **changes):
    base = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True}
    base |= {"data_type": "int", "packing_format": packing, "autoround_version": "0.15.1"}
    return {**base, "block_name_to_quantize": "model.layers", **changes}


def ct_config(fmt="pack-quantized", weights=None, inputs=None, **changes):
    w = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    group = {"targets": ["Linear"], "weights": {**w, **(weights or {})}}
    group["input_activations"] = inputs
    base = {"quant_method": "compressed-tensors", "format": fmt, "config_groups": {"g": group}}
    return {**base, "ignore": ["lm_head"], "quantization_status": "compressed", **changes}


# -- models ------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(name="LlamaForCausalLM", **changes):
    """A random model in float32 whose every parameter, biases too, matters."""
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    config = model_class.config_class(**{**SIZES, "tie_word_embeddings": False, **changes})
    model = model_class(config).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.1)
    return model


def linears(model, lm_head=False):
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and (lm_head or name != "lm_head")
    ]


def quantize_model(model, to_tensors, lm_head=False, **how):
    """Round ``model``'s weights in place; returns the tensors of the checkpoint."""
    layers = linears(model, lm_head)
    rounded = {name: quantize(m.weight, seed=i, **how) for i, (name, m) in enumerate(layers)}
    tensors = {}
    for name, module in layers:
        module.weight = torch.nn.Parameter(rounded[name].weight(), requires_grad=False)
        tensors.update({f"{name}.{k}": v for k, v in to_tensors(rounded[name]).items()})
    gone = {f"{name}.weight" for name in rounded}
    if model.config.tie_word_embeddings:
        gone.add("lm_head.weight")
    tensors.update(
        {k: v.clone() for k, v in model.state_dict().items() if k not in {*gone, *tensors}}
    )
    return tensors


def write_folder(folder: Path, model, tensors, quantization=None, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {**model.config.to_dict(), "architectures": [type(model).__name__], **config}
    values.pop("quantization_config", None)
    values.setdefault("dtype", "float32")
    if quantization is not None:
        values["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(values))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def logits(model) -> torch.Tensor:
    ids = torch.arange(3, 27).reshape(2, 12) % 96
    with torch.no_grad():
        return model(ids).logits


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
