"""`Fp8Cache`: a transformers cache that keeps keys and values as e4m3.

A layer rounds what it is given, keeps one byte for each element, and gives back its whole contents
in the dtype of the model: what attention sees has always gone through e4m3, the newest token like
the oldest, so that it does not matter in which steps a prompt is read. Memory holds the codes of
all layers, and one layer more in the model's dtype while its attention runs.

The layers are transformers' own with bytes in them. A row is the codes of one head of one token,
``uint8 [head_dim]``; with scales of its own it has four bytes more, the float32 scale. So whatever
cuts, joins, repeats or reorders rows takes the scales along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from qcore.errors import UnsupportedQuantizationError
from qcore.numerics.activation_quant import scaled_fp8_quant
from qcore.quantization.kv_cache import KVScales

__all__ = ["Fp8Cache", "Fp8Layer", "Fp8SlidingWindowLayer", "cache_bytes", "decode", "encode"]

_SCALE_BYTES = 4


def encode(x: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Round to e4m3, saturating at 448 times the scale.

    Args:
        x: float [..., D].
        scale: of all elements; None for amax / 448 of each row.

    Returns:
        uint8 [..., D], or [..., D + 4] with the scale's bytes at the end.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    known = None if scale is None else torch.full((1,), scale, dtype=torch.float32, device=x.device)
    codes, scales = scaled_fp8_quant(rows, known, per_token=scale is None)
    stored = codes.view(torch.uint8)
    if scale is None:
        stored = torch.cat([stored, scales.view(torch.uint8)], dim=-1)
    return stored.reshape(*x.shape[:-1], stored.shape[-1])


def decode(stored: torch.Tensor, scale: float | None, dtype: torch.dtype) -> torch.Tensor:
    """What `encode` made of a tensor, as values in ``dtype``, rounded to it once."""
    if scale is not None:
        values = stored.view(torch.float8_e4m3fn).to(dtype)  # exact: 4 significant bits
        return values if scale == 1.0 else values.mul_(scale)
    codes = stored[..., :-_SCALE_BYTES].view(torch.float8_e4m3fn)
    scales = stored[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
    if dtype.itemsize >= _SCALE_BYTES:
        return codes.to(dtype).mul_(scales)
    return codes.to(torch.float32).mul_(scales).to(dtype)


class Fp8Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Full attention. ``keys`` and ``values`` hold bytes; `contents` gives values.

    Args:
        scales: of the layer; None for a scale for each head of each token.
    """

    def __init__(self, scales: KVScales | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._take(scales)

    def _take(self, scales: KVScales | None) -> None:
        self.k_scale = None if scales is None else scales.k
        self.v_scale = None if scales is None else scales.v

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Note the model's dtype and device; hold no bytes."""
        super().lazy_initialization(key_states, value_states)
        self.keys = torch.empty(0, dtype=torch.uint8, device=self.device)
        self.values = torch.empty(0, dtype=torch.uint8, device=self.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new keys and values; returns all that their queries may look at, rounded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = super().update(
            encode(key_states, self.k_scale), encode(value_states, self.v_scale), *args, **kwargs
        )
        return decode(keys, self.k_scale, self.dtype), decode(values, self.v_scale, self.dtype)

    def reset(self) -> None:
        """Drop everything; early versions of transformers keep zeros."""
        super().reset()
        self.keys = self.values = None
        self.is_initialized = False

    def contents(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The keys and values that are kept, in the model's dtype; None before there are any."""
        if self.keys is None or self.values is None or self.keys.numel() == 0:
            return None
        keys, values = self.keys, self.values
        return decode(keys, self.k_scale, self.dtype), decode(values, self.v_scale, self.dtype)


class Fp8SlidingWindowLayer(Fp8Layer, DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]
    """Sliding-window or chunked attention: bytes of the last tokens only.

    Args:
        scales: as for `Fp8Layer`.
        sliding_window: tokens that a query sees.
    """

    def __init__(self, scales: KVScales | None, sliding_window: int) -> None:
        DynamicSlidingWindowLayer.__init__(self, sliding_window=sliding_window)
        self._take(scales)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Fp8Layer.update`."""
        result = super().update(key_states, value_states, *args, **kwargs)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = _own(self.keys), _own(self.values)
        return result


def _own(part: torch.Tensor) -> torch.Tensor:
    """A copy where the tensor is a view that keeps a larger one alive."""
    return part if part.untyped_storage().nbytes() == part.nbytes else part.clone()


class Fp8Cache(DynamicCache):
    """A cache of e4m3 bytes, for ``past_key_values`` of ``forward`` and ``generate``.

    Layers without keys (linear attention, layers that share another's) are as in `DynamicCache`.

    Args:
        config: the model's.
        scales: of each layer, by its index; 1.0 for those that are not there.
        dynamic: compute a scale for each head of each token instead; four bytes more a row.

    Raises:
        UnsupportedQuantizationError: the model has a kind of layer that is not supported.
    """

    def __init__(
        self,
        config: Any,
        scales: Mapping[int, KVScales] | None = None,
        *,
        dynamic: bool = False,
    ) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedQuantizationError(
                "an FP8 KV cache of a model with encoder and decoder is not supported"
            )
        super().__init__(config=config)
        given = scales or {}
        beyond = sorted(set(given) - set(range(len(self.layers))))
        if beyond:
            raise UnsupportedQuantizationError(
                f"scales of a KV cache for layer {beyond[0]}; the model has {len(self.layers)}"
            )
        self.layers = [
            _fp8_layer(layer, n, None if dynamic else given.get(n, KVScales()))
            for n, layer in enumerate(self.layers)
        ]
        self.dynamic = dynamic
        self.scaled_layers = len(given)

    def describe(self) -> str:
        """Which scales it has, in a few words."""
        if self.dynamic:
            return "a scale for each head and token"
        if self.scaled_layers == 0:
            return "scales of 1.0"
        return f"scales for {self.scaled_layers} of {len(self.layers)} layers"

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for layer in self.layers:
            window = getattr(layer, "_sliding_window_tensor", None)
            if isinstance(layer, Fp8Layer):
                yield (*(layer.contents() or (None, None)), window)
            else:
                yield getattr(layer, "keys", None), getattr(layer, "values", None), window

    def cache_bytes(self) -> int:
        """See `cache_bytes`."""
        return cache_bytes(self)


def _fp8_layer(layer: Any, index: int, scales: KVScales | None) -> Any:
    if type(layer) is DynamicLayer:
        return Fp8Layer(scales)
    if type(layer) is DynamicSlidingWindowLayer:
        return Fp8SlidingWindowLayer(scales, layer.sliding_window)
    if not isinstance(layer, CacheLayerMixin):
        return layer
    raise UnsupportedQuantizationError(
        f"an FP8 KV cache is not supported for layer {index}, whose cache in transformers is "
        f"{type(layer).__name__}; supported: full, sliding-window and chunked attention"
    )


def cache_bytes(cache: Any) -> int:
    """Bytes of memory behind the keys and values of any transformers cache."""
    held: dict[int, int] = {}
    for layer in cache.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if tensor is not None:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())
