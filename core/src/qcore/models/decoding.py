"""`generate`: transformers' with less work for each token on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from qcore.errors import QcoreError

__all__ = ["decoding_step", "generate"]

_MODES = ("greedy_search", "sample")
_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
_UNCHANGED = (
    "prepare_inputs_for_generation",
    "_update_model_kwargs_for_generation",
    "_prepare_position_ids_for_generation",
    "_prefill",
    "_sample",
)
"""What a model must not define for itself: the loop does what transformers' own do."""

_ROOM = 256
"""Tokens for which buffers have room at first; they double when they are full."""


def generate(
    model: Any, inputs: torch.Tensor | None = None, streamer: Any = None, **options: Any
) -> Any:
    """The tokens of transformers' ``model.generate``, in less time.

    What comes before the first token is transformers' own. Then keys and values go to buffers with
    room for more, instead of being copied with each token, and nothing is prepared anew. That is
    for one text without padding, on a CPU, in a model that leaves transformers' steps as they are;
    all else goes through these.

    Args:
        model: of transformers, as `load_model` returns it.
        inputs: as of ``model.generate``.
        streamer: as of ``model.generate``.
        options: as of ``model.generate``.

    Returns:
        What ``model.generate`` returns.

    Raises:
        QcoreError: the options ask for beams, an assistant or another mode.
    """
    # Of a streamer, transformers tells a loop of another's nothing.
    loop = partial(_loop, streamer=streamer)
    return model.generate(inputs, streamer=streamer, custom_generate=loop, **options)


def _loop(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    **inputs: Any,
) -> Any:
    """From the prompt to the end of the text; ``model.generate`` calls it with what it prepared."""
    mode = str(generation_config.get_generation_mode().value)
    if mode not in _MODES:
        raise QcoreError(f"generate: the mode is {mode}; it must be one of {', '.join(_MODES)}")
    if synced_gpus or not _is_simple(model, input_ids, generation_config, inputs):
        return model._sample(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **inputs,
        )
    if inputs.get("attention_mask") is not None:
        inputs["attention_mask"] = None  # it masks nothing
    cache = inputs["past_key_values"]
    logits = model(input_ids=input_ids, **inputs, return_dict=True).logits[:, -1].float()
    run = _Steps(model, cache, positions="position_ids" in inputs)
    count = input_ids.shape[1]
    texts = _with_room(input_ids, 1, count, count + _ROOM)
    while True:
        scores = logits_processor(texts[:, :count], logits)
        if generation_config.do_sample:
            token = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)
        else:
            # torch's own argmax takes many times as long over a quarter million logits.
            token = torch.tensor([[int(scores.numpy().argmax())]])
        if count == texts.shape[1]:
            texts = _with_room(texts, 1, count, 2 * count)
        texts[:, count : count + 1] = token
        count += 1
        if streamer is not None:
            streamer.put(token[0])
        if bool(stopping_criteria(texts[:, :count], None)):
            break
        logits = run(token).float()
    if streamer is not None:
        streamer.end()
    return texts[:, :count].clone()


def decoding_step(
    forward: Callable[..., Any],
    ids: torch.Tensor,
    position: torch.Tensor | None,
    slots: Sequence[torch.Tensor],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    windows: Sequence[int | None],
    length: int,
) -> torch.Tensor:
    """One token's forward pass with keys and values in buffers; the logits.

    Args:
        forward: a model's.
        ids: the token, [1, 1].
        position: of the token, [1, 1]; None for a model that takes none.
        slots: where the token's keys and values go: without a window, with one.
        keys: for each layer, [1, heads, room, head size]; changed in place.
        values: as ``keys``.
        windows: for each layer, the sliding window, of which the buffer is a ring.
        length: tokens before this one.
    """
    cache = _Buffers(
        [
            _BufferLayer(k, v, slots[window is not None], window, length)
            for k, v, window in zip(keys, values, windows, strict=True)
        ]
    )
    inputs = {} if position is None else {"position_ids": position}
    out = forward(
        input_ids=ids,
        past_key_values=cache,
        attention_mask=None,
        use_cache=True,
        return_dict=True,
        **inputs,
    )
    return out.logits[:, -1]  # type: ignore[no-any-return]


class _BufferLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """A layer's buffers, for the step of one token. All that is kept may be seen."""

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        slot: torch.Tensor,
        window: int | None,
        length: int,
    ) -> None:
        self.keys, self.values, self.slot, self.length = keys, values, slot, length
        self.is_sliding, self.is_initialized = window is not None, True
        self.used = length + 1 if window is None else torch.sym_min(length + 1, window)  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put in the token's; all of them."""
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """One key, that of the token itself: what masks nothing there masks nothing at all."""
        return 1, self.length

    def get_seq_length(self) -> int:
        """Tokens before this one."""
        return self.length

    def get_max_length(self) -> int:
        """None is known."""
        return -1


class _Buffers(Cache):
    """The layers, for a model's forward; as little as torch.compile has to trace."""

    def __init__(self, layers: list[_BufferLayer]) -> None:
        self.layers = self._buffers = layers  # type: ignore[assignment]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the layer."""
        return self._buffers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this one; the same for all layers."""
        return self._buffers[0].get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Of the layer."""
        return self._buffers[layer_idx].get_mask_sizes(query_length)


class _Steps:
    """The passes after the prompt, with the prompt's keys and values in buffers."""

    def __init__(self, model: Any, cache: Any, positions: bool) -> None:
        self._forward, self._positions = model, positions
        self._step = getattr(model.forward, "decoding_step", None)
        self._length = cache.get_seq_length()
        self._cache = cache
        if not all(_is_plain(layer) for layer in cache.layers):
            return
        self._cache = None
        self._windows = [getattr(layer, "sliding_window", None) for layer in cache.layers]
        self._window = next((w for w in self._windows if w is not None), 1)
        self._room = self._length + _ROOM
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        for layer, window in zip(cache.layers, self._windows, strict=True):
            for tensor, buffers in ((layer.keys, self._keys), (layer.values, self._values)):
                buffers.append(self._buffer(tensor, window))
            layer.reset()  # frees them

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """The logits after one more token."""
        position = torch.tensor([[self._length]]) if self._positions else None
        if self._cache is not None:
            inputs = {} if position is None else {"position_ids": position}
            out = self._forward(
                input_ids=token, past_key_values=self._cache, use_cache=True, **inputs
            )
            self._length += 1
            return out.logits[:, -1]  # type: ignore[no-any-return]
        if self._length == self._room:
            self._room *= 2
            for buffers in (self._keys, self._values):
                for i, window in enumerate(self._windows):
                    if window is None:
                        buffers[i] = _with_room(buffers[i], 2, self._length, self._room)
        slots = [torch.tensor([self._length]), torch.tensor([self._length % self._window])]
        rest = (token, position, slots, self._keys, self._values, self._windows, self._length)
        self._length += 1
        if self._step is not None:
            return self._step(*rest)  # type: ignore[no-any-return]
        return decoding_step(self._forward, *rest)

    def _buffer(self, tensor: torch.Tensor, window: int | None) -> torch.Tensor:
        """Room for a layer's keys, with those of the prompt; with a window, a ring."""
        kept = tensor.shape[2]
        if window is None:
            return _with_room(tensor, 2, kept, self._room)
        shape = list(tensor.shape)
        shape[2] = window
        buffer = tensor.new_empty(shape)
        places = torch.arange(self._length - kept, self._length) % window
        return buffer.index_copy_(2, places, tensor)


def _with_room(tensor: torch.Tensor, dim: int, used: int, room: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dim] = room
    larger = tensor.new_empty(shape)
    larger.narrow(dim, 0, used).copy_(tensor.narrow(dim, 0, used))
    return larger


def _is_plain(layer: Any) -> bool:
    """Whether all that a later token sees of a layer are its last keys and values."""
    return (
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        and layer.is_initialized
        and layer.keys.dim() == layer.values.dim() == 4
    )


def _is_simple(
    model: Any, input_ids: torch.Tensor, generation_config: Any, inputs: dict[str, Any]
) -> bool:
    """Whether a token's pass needs only the token, its position, and the layers' buffers."""
    cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
    config = model.config.get_text_config(decoder=True)
    types = set(getattr(config, "layer_types", None) or ())
    windows = {getattr(layer, "sliding_window", None) for layer in getattr(cache, "layers", ())}
    return (
        input_ids.device.type == model.device.type == "cpu"
        and input_ids.shape[0] == 1
        and input_ids.shape[1] > 0
        and type(cache) is DynamicCache
        and not getattr(cache, "_is_user_defined", False)
        and not cache.offloading
        and cache.get_seq_length() == 0
        and len(windows - {None}) <= 1
        and types <= {"full_attention", "sliding_attention"}
        and set(inputs) <= _INPUTS
        and (mask is None or (mask.dim() == 2 and bool(mask.all())))
        and inputs.get("use_cache") is True
        and not model.config.is_encoder_decoder
        and model.config._attn_implementation in ("sdpa", "eager")
        and not generation_config.return_dict_in_generate
        and not generation_config.output_attentions
        and not generation_config.output_hidden_states
        and generation_config.prefill_chunk_size is None
        and not generation_config.is_assistant
        and all(
            getattr(type(model), name, None) is getattr(GenerationMixin, name, None)
            for name in _UNCHANGED
        )
    )
