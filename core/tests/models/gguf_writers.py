"""Write small GGUF files from transformers models, by the `gguf` package.

Names are those of its own table, blocks are made by its own quantizers where it has them and are
random bytes elsewhere. The model gets the weights that the blocks stand for, so it is what a loaded
file must agree with.
"""

from __future__ import annotations

import itertools
import struct

import gguf
import numpy as np
import torch
from qcore.layers.gguf import GGUFLinearLayerConfig
from qcore.testing import random_tensors

QUANTIZABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "Gemma2ForCausalLM": gguf.MODEL_ARCH.GEMMA2,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
}


def to_blocks(weight, qtype, seed=0):
    """Bytes and values of a weight [N, K]; of a random one for types without a quantizer."""
    kind = gguf.GGMLQuantizationType[qtype]
    if qtype in QUANTIZABLE:
        blocks = gguf.quants.quantize(weight.numpy(), kind)
    else:
        blocks = random_tensors(GGUFLinearLayerConfig(tuple(weight.shape), qtype), seed)["weight"]
        blocks = blocks.numpy()
    return blocks, torch.from_numpy(gguf.quants.dequantize(blocks, kind))


def paired(rows, heads):
    """The rows of queries or keys in llama.cpp's order: the two of a rotary pair side by side."""
    size = rows.shape[0] // heads
    order = [
        h * size + t * (size // 2) + j
        for h in range(heads)
        for j in range(size // 2)
        for t in (0, 1)
    ]
    return rows[order]


def write_gguf(
    file, model, types=("Q8_0",), embedding="Q8_0", tokens=None, split=0, eot=None, **extra
):
    """Write ``model``, its linear layers in the types of ``types`` in turn; returns the file.

    With ``split`` there are several files of so many tensors each.
    """
    config, name = model.config, type(model).__name__
    architecture = ARCHITECTURES[name]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture], split_max_tensors=split)
    metadata(writer, config, name, tokens)
    if eot is not None:
        writer.add_eot_token_id(eot)
    for key, value in extra.items():
        key = f"{gguf.MODEL_ARCH_NAMES[architecture]}.{key.replace('__', '.')}"
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    turn = itertools.cycle(types)
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for index, (key, tensor) in enumerate(state.items()):
        theirs = table.get_name(key, try_suffixes=(".weight", ".bias"))
        heads = 0
        if name == "LlamaForCausalLM" and key.split(".")[-2] in ("q_proj", "k_proj"):
            q = "q_proj" in key
            heads = config.num_attention_heads if q else config.num_key_value_heads
        if tensor.dim() == 1:
            values = tensor + 1 if "Gemma" in name and "norm" in key else tensor
            writer.add_tensor(theirs, (paired(values, heads) if heads else values).numpy())
            continue
        qtype = embedding if "embed" in key else next(turn)
        if qtype in ("F32", "F16"):
            dtype = np.float32 if qtype == "F32" else np.float16
            stored = (paired(tensor, heads) if heads else tensor).numpy().astype(dtype)
            writer.add_tensor(theirs, stored)
            tensor.copy_(tensor.to(getattr(torch, np.dtype(dtype).name)))
            continue
        blocks, values = to_blocks(tensor, qtype, index)
        tensor.copy_(values)
        stored = np.ascontiguousarray(paired(blocks, heads)) if heads else blocks
        writer.add_tensor(theirs, stored, raw_dtype=gguf.GGMLQuantizationType[qtype])
    factors = extra_factors(model)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def metadata(writer, config, name, tokens):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if "Gemma" in name:
        writer.add_sliding_window(config.sliding_window)
    if name == "Gemma2ForCausalLM":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * len(tokens))
        writer.add_token_merges(["a b", "ab c"])


def extra_factors(model):
    """What Llama 3.1 divides its rotary frequencies by, as llama.cpp's converter writes it."""
    rope = model.config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    size = model.config.head_dim
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    return plain / model.model.rotary_emb.inv_freq


# -- by the byte -------------------------------------------------------------------------------


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


def tensor(name, dims, kind, offset):
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    return text(name) + struct.pack("<I", len(dims)) + sizes + struct.pack("<IQ", kind, offset)


def container(pairs=(), tensors=(), data=b"", version=3, counts=None, magic=b"GGUF"):
    """A file from its parts, whether they make sense or not."""
    counts = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<I2Q", version, *counts) + b"".join((*pairs, *tensors))
    return head + b"\0" * (-len(head) % 32) + data
