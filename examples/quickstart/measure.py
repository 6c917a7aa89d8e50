"""Perplexity on a text, and the speed of generation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

__all__ = ["Speed", "generate", "perplexity", "weight_bytes"]


@dataclass(frozen=True)
class Speed:
    """A generated text and how fast it came.

    Attributes:
        text: prompt and continuation.
        tokens: generated.
        decode_per_second: tokens a second after the first.
    """

    text: str
    tokens: int
    decode_per_second: float


class _Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when each token comes; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """exp of the mean negative log-likelihood of each token given all before it."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    # The head is the largest layer by far; its logits are made a piece at a time.
    hidden = model.model(ids).last_hidden_state[0, :-1]
    targets = ids[0, 1:]
    total = 0.0
    for start in range(0, len(targets), 256):
        logits = model.lm_head(hidden[start : start + 256]).float()
        part = targets[start : start + 256]
        total += float(torch.nn.functional.cross_entropy(logits, part, reduction="sum"))
    return math.exp(total / len(targets))


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> Speed:
    """Greedy continuation of ``prompt``; run twice, the second time measured."""
    inputs = tokenizer(prompt, return_tensors="pt")
    options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    model.generate(**inputs, do_sample=False, max_new_tokens=4)
    clock = _Clock()
    out = model.generate(**inputs, **options, streamer=clock)
    times = clock.times[1:]  # without the prompt
    seconds = times[-1] - times[0]
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    return Speed(text, len(times), (len(times) - 1) / seconds)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, each memory counted once."""
    seen = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())
