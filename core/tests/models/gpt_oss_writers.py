"""Small gpt-oss checkpoints whose experts are MXFP4, by numpy alone.

A block is 32 inputs of one output: 16 bytes of e2m1 codes, the even input in the low half, and one
byte for the power of two, less -127.
"""

from __future__ import annotations

import checkpoint_writers as w
import numpy as np
import torch

GRID = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def tiny_gpt_oss(gain=1.0, **changes):
    """``gain`` multiplies the weights of gate and up, so that their bounds are reached."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, **changes}
    model = w.tiny_model("GptOssForCausalLM", **sizes)
    for layer in model.model.layers:
        layer.mlp.experts.gate_up_proj *= gain
        layer.mlp.experts.gate_up_proj_bias += 0.3
    return model


def round_mxfp4(weight: np.ndarray):
    """[..., K] to (blocks [..., K/32, 16], scales [..., K/32], the weight that they stand for)."""
    parts = weight.reshape(*weight.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.abs(parts).max(-1))).astype(np.int32) - 2
    scaled = parts / np.exp2(exponent.astype(np.float32))[..., None]
    index = np.abs(np.abs(scaled)[..., None] - GRID).argmin(-1)
    codes = (index + 8 * (scaled < 0)).astype(np.uint8)
    values = (
        np.where(scaled < 0, -1, 1) * GRID[index] * np.exp2(exponent.astype(np.float32))[..., None]
    )
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return (
        blocks,
        (exponent + 127).astype(np.uint8),
        values.reshape(weight.shape).astype(np.float32),
    )


def quantize_gpt_oss(model):
    """Round the experts in place; returns the tensors of the checkpoint."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    for i, layer in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            parameter = getattr(layer.mlp.experts, name)  # [E, K, N]
            blocks, scales, values = round_mxfp4(parameter.transpose(1, 2).numpy().copy())
            parameter.copy_(torch.from_numpy(values).transpose(1, 2))
            prefix = f"model.layers.{i}.mlp.experts.{name}"
            del tensors[prefix]
            tensors[f"{prefix}_blocks"] = torch.from_numpy(blocks)
            tensors[f"{prefix}_scales"] = torch.from_numpy(scales)
    return tensors


def write_gpt_oss(folder, gain=1.0, **changes):
    """(folder, the float model with the same weights)."""
    model = tiny_gpt_oss(gain, **changes)
    return w.write_folder(folder, model, quantize_gpt_oss(model), CONFIG), model
