"""`fp8_cache`: the FP8 KV cache of a model, with its checkpoint's scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from qcore.errors import ConfigError, UnsupportedQuantizationError
from qcore.models.kv_scales import KV_METHOD, KV_SCALES
from qcore.models.skeleton import import_transformers
from qcore.quantization.kv_cache import Fp8KVCacheMethod, KVScales

if TYPE_CHECKING:
    from qcore.models.kv_cache import Fp8Cache

__all__ = ["fp8_cache"]


def fp8_cache(
    model: Any, scales: Literal["checkpoint", "dynamic"] | Mapping[int, KVScales] = "checkpoint"
) -> Fp8Cache:
    """An empty FP8 KV cache for a model; each sequence of calls needs one of its own.

    ``model.generate(**inputs, past_key_values=fp8_cache(model))``

    Args:
        model: one that `load_model` loaded, or any other of transformers.
        scales: ``"checkpoint"`` for those that came with the model, 1.0 where there are none;
            ``"dynamic"`` for one for each head of each token; or those of each layer, by its index.

    Raises:
        UnsupportedQuantizationError: the checkpoint is meant for a cache of another kind (the
            other two choices work), or the model has layers that have no such cache.
        ConfigError: ``scales`` is none of these.
        MissingDependencyError: transformers is not installed.
    """
    import_transformers()
    from qcore.models.kv_cache import Fp8Cache

    if isinstance(scales, Mapping):
        return Fp8Cache(model.config, scales)
    if scales == "dynamic":
        return Fp8Cache(model.config, dynamic=True)
    if scales != "checkpoint":
        raise ConfigError(f"scales is {scales!r}; 'checkpoint', 'dynamic', or KVScales by layer")
    method: Fp8KVCacheMethod = getattr(model, KV_METHOD, Fp8KVCacheMethod())
    if method.refused is not None:
        raise UnsupportedQuantizationError(
            f"{method.refused}. An FP8 cache with scales of its own can be made: scales='dynamic'"
        )
    return Fp8Cache(model.config, getattr(model, KV_SCALES, {}), dynamic=method.dynamic)
