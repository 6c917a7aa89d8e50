"""`open_gguf`: a GGUF file as a `Checkpoint`, its tensors under the names of transformers.

llama.cpp's converters change some tensors; `GGUFTensor` undoes it as it reads them:

- ``llama``: the rows of queries and keys are reordered so that the two rows of a rotary pair are
  neighbours. Rows move as they are, so this needs no look into the blocks.
- ``gemma``: norms are stored with 1 added.
- the tied output is not stored: the layer ``lm_head`` runs on the embedding's own blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qcore.errors import CheckpointError
from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.models.checkpoint import Checkpoint
from qcore.models.gguf_config import model_config
from qcore.models.gguf_file import GGUFEntry, GGUFHeader, read_gguf
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.numerics.gguf_blocks import dequantize_blocks
from qcore.quantization.gguf import GGUFConfig

__all__ = ["GGUFTensor", "open_gguf"]

_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
_PART = 1 << 24  # weights that are dequantized at a time

_ROPE_FACTORS = "rope_freqs.weight"
_EMBEDDING, _OUTPUT = "model.embed_tokens", "lm_head"

_TOP = {
    "token_embd": _EMBEDDING,
    "output_norm": "model.norm",
    "output": _OUTPUT,
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LINEAR = re.compile(r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|lm_head)$")
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,6})\.)?(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class GGUFTensor(TensorInfo):
    """A tensor of a GGUF file. ``dtype`` and ``shape`` are those that it has once it is read.

    Attributes:
        qtype: as it is stored.
        heads: so many heads have their rows in llama.cpp's order; 0 for none.
        plus_one: whether 1 was added.
    """

    qtype: str = "F32"
    heads: int = 0
    plus_one: bool = False

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The tensor: blocks as they are where ``dtype`` is uint8, else its values."""
        rows = data.reshape(self.shape[0], -1)
        if self.heads:
            rows = rows.reshape(self.heads, -1, 2, rows.shape[1]).transpose(1, 2)
            rows = rows.reshape(self.shape[0], -1)
        if self.dtype is torch.uint8:
            return rows.contiguous()
        if self.qtype in _PLAIN:
            values = rows.contiguous().view(_PLAIN[self.qtype]).reshape(self.shape).to(self.dtype)
        else:
            values = self._dequantized(rows)
        return values - 1 if self.plus_one else values

    def _dequantized(self, rows: torch.Tensor) -> torch.Tensor:
        values = torch.empty((len(rows), self.shape[-1]), dtype=self.dtype)
        step = max(1, _PART // self.shape[-1])
        for at in range(0, len(rows), step):
            values[at : at + step] = dequantize_blocks(rows[at : at + step], self.qtype)
        return values

    def in_blocks(self) -> GGUFTensor:
        """To be read as rows of blocks, uint8."""
        row = GGUF_BLOCK_TYPES[self.qtype].row_bytes(self.shape[-1])
        return replace(self, dtype=torch.uint8, shape=(self.shape[0], row))

    def with_dtype(self, dtype: torch.dtype) -> TensorInfo:
        """Dequantized in parts straight into ``dtype``."""
        whole = self.plus_one or self.qtype in _PLAIN or not dtype.is_floating_point
        return self if whole else replace(self, dtype=dtype)


def open_gguf(file: Path) -> Checkpoint:
    """Read a file's header and check it; no weight is read.

    Raises:
        CheckpointError: it is damaged, or of an architecture that is not supported.
        UnsupportedQuantizationError: it has something else that is not supported.
    """
    header = read_gguf(file)
    config = model_config(header, _rope_factors(header))
    tensors: dict[str, TensorInfo] = {}
    types: dict[str, str] = {}
    for entry in header.tensors.values():
        if entry.name == _ROPE_FACTORS:
            continue
        name = _name(header, entry)
        if name in tensors:
            raise CheckpointError(f"{file}: two tensors are {name}, one of them {entry.name!r}")
        tensors[name] = _tensor(header, config, entry, name, types)
    _check_sizes(header, config)
    embedding = header.tensors["token_embd.weight"]
    if config["tie_word_embeddings"] and embedding.qtype in GGUF_BLOCK_TYPES:
        name = f"{_OUTPUT}.weight"
        tensors[name] = _tensor(header, config, embedding, name, types)
    return Checkpoint(file, config, tensors, GGUFConfig(types) if types else None)


def _check_sizes(header: GGUFHeader, config: dict[str, Any]) -> None:
    """Metadata and tensors must be of one model before a model is built from the metadata."""
    matches = (_NAME.fullmatch(name) for name in header.tensors)
    layers = {int(match[1]) for match in matches if match is not None and match[1]}
    count = config["num_hidden_layers"]
    if layers != set(range(len(layers))) or len(layers) != count:
        raise CheckpointError(
            f"{header.file}: the metadata says {count} layers, and there are tensors of "
            f"{len(layers)}, the last with number {max(layers, default=-1)}"
        )
    heads = config["num_attention_heads"]
    for name, shape in (
        ("token_embd.weight", (config["vocab_size"], config["hidden_size"])),
        ("blk.0.attn_q.weight", (heads * config["head_dim"], config["hidden_size"])),
        ("blk.0.ffn_up.weight", (config["intermediate_size"], config["hidden_size"])),
    ):
        entry = header.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{header.file}: tensor {name!r} is missing")
        if entry.shape != shape:
            raise CheckpointError(
                f"{header.file}: {name} has shape {list(entry.shape)}, the metadata says "
                f"{list(shape)}"
            )


def _rope_factors(header: GGUFHeader) -> tuple[float, ...] | None:
    entry = header.tensors.get(_ROPE_FACTORS)
    if entry is None:
        return None
    if entry.qtype != "F32" or len(entry.shape) != 1 or entry.shape[0] > 4096:
        raise CheckpointError(f"{header.file}: {entry.name} is {entry.qtype} {list(entry.shape)}")
    factors = tuple(read_tensor(_info(entry, entry.name)).tolist())
    if not all(0 < factor < float("inf") for factor in factors):
        raise CheckpointError(f"{header.file}: {entry.name} has factors that are not positive")
    return factors


def _name(header: GGUFHeader, entry: GGUFEntry) -> str:
    """The name in transformers."""
    match = _NAME.fullmatch(entry.name)
    gemma = str(header.metadata["general.architecture"]).startswith("gemma")
    if match is not None:
        index, part, kind = match.groups()
        if index is None and part in _TOP:
            return f"{_TOP[part]}.{kind}"
        inner = (_GEMMA_LAYER if gemma else _LAYER).get(part)
        if index is not None and inner is not None:
            return f"model.layers.{int(index)}.{inner}.{kind}"
    raise CheckpointError(
        f"{header.file}: tensor {entry.name!r} is none of the architecture "
        f"{header.metadata['general.architecture']!r}"
    )


def _tensor(
    header: GGUFHeader,
    config: dict[str, Any],
    entry: GGUFEntry,
    name: str,
    types: dict[str, str],
) -> GGUFTensor:
    """The tensor under its new name; blocks of a linear layer are put into ``types``."""
    if len(entry.shape) != 2 and entry.qtype in GGUF_BLOCK_TYPES:
        raise CheckpointError(
            f"{header.file}: {entry.name} {list(entry.shape)} is in {entry.qtype} blocks; only "
            "matrices may be"
        )
    info = _info(entry, name)
    layer, _, kind = name.rpartition(".")
    architecture = str(header.metadata["general.architecture"])
    if architecture == "llama" and layer.endswith(("q_proj", "k_proj")):
        key = "num_attention_heads" if layer.endswith("q_proj") else "num_key_value_heads"
        heads = int(config[key])
        if info.shape[0] != heads * config["head_dim"] or config["head_dim"] % 2:
            raise CheckpointError(
                f"{header.file}: {entry.name} has {info.shape[0]} rows, the metadata says {heads} "
                f"heads of {config['head_dim']}"
            )
        info = replace(info, heads=heads)
    if architecture.startswith("gemma") and layer.endswith("norm") and kind == "weight":
        info = replace(info, plus_one=True)
    if kind == "weight" and _LINEAR.search(layer) and entry.qtype in GGUF_BLOCK_TYPES:
        types[layer] = entry.qtype
        info = info.in_blocks()
    return info


def _info(entry: GGUFEntry, name: str) -> GGUFTensor:
    dtype = _PLAIN.get(entry.qtype, torch.float32)
    return GGUFTensor(
        name, dtype, entry.shape, entry.file, entry.offset, entry.nbytes, qtype=entry.qtype
    )
