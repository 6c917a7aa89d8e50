"""From the metadata of a GGUF file to a ``config.json``: which model of transformers it is.

Keys are ``<architecture>.<name>``; their meaning is llama.cpp's (its ``gguf-py/gguf/constants.py``
lists them). What would change the numbers and has no counterpart in the model's class is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.models.gguf_file import GGUFHeader
from qcore.quantization.json_text import shown

__all__ = ["ARCHITECTURES", "model_config"]


class Metadata:
    """The metadata of one architecture, typed."""

    def __init__(self, header: GGUFHeader, architecture: str) -> None:
        self.header = header
        self.architecture = architecture

    def number(self, name: str, default: float | None = None) -> Any:
        """A number; an integer where it is one.

        Raises:
            CheckpointError: it is absent and has no default, or is something else.
        """
        key = self.key(name)
        value = self.header.metadata.get(key, default)
        if isinstance(value, tuple) and value and len(set(value)) == 1:
            value = value[0]
        if value is None:
            raise CheckpointError(f"{self.header.file}: the metadata lacks {key!r}")
        finite = isinstance(value, (int, float)) and math.isfinite(value)
        if isinstance(value, bool) or not finite:
            raise CheckpointError(
                f"{self.header.file}: {key} is {shown(value)}; one finite number is needed"
            )
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer that is no size of a model from another world.

        Raises:
            CheckpointError: it is none.
        """
        value = self.number(name, default)
        if not isinstance(value, int) or not 0 < value < 1 << 24:
            raise CheckpointError(f"{self.header.file}: {self.key(name)} is {shown(value)}")
        return value

    def token(self, name: str) -> int | None:
        """The token that ``name`` stands for, if there is one."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.header.metadata.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise CheckpointError(f"{self.header.file}: {key} is {shown(value)}")
        return value

    def has(self, name: str) -> bool:
        """Whether there is such a key."""
        return self.key(name) in self.header.metadata

    def text(self, name: str) -> str:
        """A string; empty where there is none."""
        return str(self.header.metadata.get(self.key(name), ""))

    def key(self, name: str) -> str:
        """With the architecture before it."""
        return f"{self.architecture}.{name}"


def model_config(header: GGUFHeader, rope_factors: tuple[float, ...] | None) -> dict[str, Any]:
    """The ``config.json`` of the model in a file.

    Args:
        header: of the file.
        rope_factors: the values of its tensor ``rope_freqs.weight``, if it has one: what each
            rotary frequency is divided by (Llama 3.1 and later).

    Raises:
        CheckpointError: the architecture is not known, or a key is missing.
        UnsupportedQuantizationError: the file has something that is not supported.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError(f"{header.file}: the metadata lacks 'general.architecture'")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.file}: the architecture {shown(name)} is not supported; "
            f"{', '.join(sorted(ARCHITECTURES))} are"
        )
    meta = Metadata(header, name)
    if meta.has("expert_count") and meta.number("expert_count"):
        raise UnsupportedQuantizationError(f"{header.file}: mixtures of experts are not supported")
    config = _common(meta, rope_factors)
    config.update(ARCHITECTURES[name](meta, config))
    return config


def _common(meta: Metadata, rope_factors: tuple[float, ...] | None) -> dict[str, Any]:
    tensors = meta.header.tensors
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{meta.header.file}: no tensor 'token_embd.weight' [vocabulary, K]")
    heads, hidden = meta.size("attention.head_count"), meta.size("embedding_length")
    head_dim = meta.size("attention.key_length", hidden // heads or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if meta.size(name, head_dim) != head_dim:
            raise UnsupportedQuantizationError(
                f"{meta.header.file}: {meta.key(name)} is {meta.size(name)} where a head has "
                f"{head_dim}; they must be equal"
            )
    config = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": meta.size("block_count"),
        "intermediate_size": meta.size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": meta.size("context_length"),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rope(meta, rope_factors),
    }
    # None where the file says nothing: the classes' defaults are those of other vocabularies.
    config["bos_token_id"] = meta.token("bos")
    config["pad_token_id"] = meta.token("padding")
    # The end of a text, of a turn, of a message: llama.cpp stops at each of them.
    ends = (meta.token(name) for name in ("eos", "eot", "eom"))
    stops = list(dict.fromkeys(token for token in ends if token is not None))
    config["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    return config


def _rope(meta: Metadata, factors: tuple[float, ...] | None) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(meta.number("rope.freq_base", 10000.0)),
    }
    context = meta.size("context_length")
    scaling = meta.text("rope.scaling.type")
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 1.0))
    if factors is not None:
        # transformers' only rotary type that takes any divisors; one list serves all lengths.
        rope.update(
            rope_type="longrope",
            short_factor=list(factors),
            long_factor=list(factors),
            factor=1.0,
            attention_factor=1.0,
            original_max_position_embeddings=context,
        )
    elif scaling == "yarn":
        original = meta.size("rope.scaling.original_context_length", context)
        rope.update(
            rope_type="yarn", factor=float(factor), original_max_position_embeddings=original
        )
    elif scaling in ("", "none", "linear"):
        if factor not in (0, 1) and scaling != "none":
            rope.update(rope_type="linear", factor=float(factor))
    else:
        raise UnsupportedQuantizationError(
            f"{meta.header.file}: rotary scaling {shown(scaling)} is not supported"
        )
    return rope


# -- architectures -----------------------------------------------------------------------------


def _llama(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    tensors = meta.header.tensors
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _qwen2(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _qwen3(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in meta.header.tensors
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": bias,
    }


def _query_scale(config: Mapping[str, Any], layers_of_27b: int) -> int:
    """What queries are divided by the root of: a head's size, but for the models of 27B.

    Files do not say; llama.cpp goes by the number of layers, too.
    """
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _layer_types(meta: Metadata, period: int) -> list[str]:
    """Which layers see a window: each but every ``period``-th, or as the file says."""
    name, count = "attention.sliding_window_pattern", meta.size("block_count")
    stated = meta.header.metadata.get(meta.key(name))
    if isinstance(stated, tuple) and len(stated) == count:
        windows = [bool(item) for item in stated]
    else:
        period = meta.size(name, period)
        windows = [(index + 1) % period != 0 for index in range(count)]
    return ["sliding_attention" if window else "full_attention" for window in windows]


def _gemma2(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": meta.size("attention.sliding_window", 4096),
        "layer_types": _layer_types(meta, 2),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scale(config, 46),
    }


def _gemma3(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    whole = dict(config["rope_parameters"])
    if not meta.has("rope.freq_base"):
        whole["rope_theta"] = 1000000.0
    local = meta.number("rope.freq_base_swa", 10000.0)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": meta.size("attention.sliding_window", 1024),
        "layer_types": _layer_types(meta, 6),
        "query_pre_attn_scalar": _query_scale(config, 62),
        "final_logit_softcapping": (
            meta.number("final_logit_softcapping") if meta.has("final_logit_softcapping") else None
        ),
        "rope_parameters": {
            "full_attention": whole,
            "sliding_attention": {"rope_type": "default", "rope_theta": float(local)},
        },
    }


ARCHITECTURES: dict[str, Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
"""``general.architecture`` -> what it adds to the config. Mistral's files say ``llama``."""
