"""ModelOpt: NVIDIA's FP8, NVFP4 and MXFP8 checkpoints.

The config lies in ``hf_quant_config.json`` under ``quantization``, or in ``config.json``:
``quant_algo`` names the format of every layer, ``exclude_modules`` (``ignore`` in config.json)
lists patterns of layers that are not quantized. With ``quant_algo: MIXED_PRECISION``,
``quantized_layers`` names each layer and its format.

===========================  ==================================================================
FP8                          e4m3 per tensor; activations static per tensor
FP8_PER_CHANNEL_PER_TOKEN    e4m3 per channel; activations dynamic per token
FP8_PB_WO                    e4m3 in blocks of 128 x 128; the input left as it is
NVFP4, W4A16_NVFP4           NVFP4 weights; activations NVFP4, as they are
MXFP8                        MXFP8 weights and activations
MXFP4                        MXFP4 weights and activations
===========================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.facts.quant_key import (
    GroupShape,
    kFp8DynamicTokenSym,
    kFp8StaticTensorSym,
    kMxfp4Dynamic,
    kMxfp8Dynamic,
)
from qcore.quantization.base import LinearScheme, QuantizationConfig
from qcore.quantization.block_formats import (
    MODELOPT_NVFP4,
    MxFp4Scheme,
    Mxfp8Scheme,
    NvFp4Scheme,
)
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.kv_cache import KV_CACHE_SCALES, Fp8KVCacheMethod, is_kv_cache_scale
from qcore.quantization.layer_lists import LayerList, is_listed
from qcore.quantization.name_patterns import Globs

__all__ = ["ModelOptConfig"]

_BLOCK = GroupShape(128, 128)
_SCHEMES: Mapping[str, LinearScheme] = {
    "FP8": Float8Scheme("ModelOpt FP8", GroupShape.PER_TENSOR, kFp8StaticTensorSym),
    "FP8_PER_CHANNEL_PER_TOKEN": Float8Scheme(
        "ModelOpt FP8", GroupShape.PER_CHANNEL, kFp8DynamicTokenSym
    ),
    "FP8_PB_WO": Float8Scheme("ModelOpt FP8", _BLOCK, None),
    "NVFP4": NvFp4Scheme("ModelOpt NVFP4", MODELOPT_NVFP4, quantized_inputs=True),
    "W4A16_NVFP4": NvFp4Scheme("ModelOpt NVFP4", MODELOPT_NVFP4, quantized_inputs=False),
    "MXFP8": Mxfp8Scheme("ModelOpt MXFP8", kMxfp8Dynamic),
    "MXFP4": MxFp4Scheme("ModelOpt MXFP4", kMxfp4Dynamic, weight_name="weight"),
}
_TRT = "its packing is TensorRT-LLM's"
_SCALED = "it scales inputs before they are rounded"
_FP8_INPUTS = (
    "FP8 activations with one scale per tensor, and FP4 weights, are no layer of any kernel"
)
_REFUSED = {
    "W4A8_MXFP4_FP8": f"{_FP8_INPUTS}; quantize to MXFP4",
    "W4A8_NVFP4_FP8": f"{_FP8_INPUTS}; quantize to NVFP4",
    "W4A8_MXFP4": f"{_FP8_INPUTS}; quantize to MXFP4",
    "W4A16_AWQ": f"{_TRT}; quantize with AWQ, or to W4A16_NVFP4",
    "W4A8_AWQ": f"{_TRT}; quantize to NVFP4",
    "NVFP4_AWQ": f"{_SCALED}; quantize to NVFP4",
    "NVFP4_SVD": f"{_SCALED} and adds a product of low rank; quantize to NVFP4",
    "W8A8_SQ_PER_CHANNEL": f"{_SCALED}; quantize to W8A8 with llm-compressor",
    "W8A16": "quantize to W8A16 with llm-compressor",
}


class ModelOptConfig(QuantizationConfig):
    """The config of ModelOpt.

    Args:
        algo: its ``quant_algo``.
        default: the scheme of the layers; None if each is named.
        layers: the scheme of each named layer.
        exclude_modules: patterns of the names of layers that are not quantized.
        kv_cache: what the config says about the KV cache; None for nothing.
    """

    def __init__(
        self,
        algo: str,
        default: LinearScheme | None,
        layers: Mapping[str, LinearScheme],
        exclude_modules: Sequence[str] = (),
        kv_cache: Fp8KVCacheMethod | None = None,
    ) -> None:
        self.algo = algo
        self.default = default
        self.layers = dict(layers)
        self.exclude_modules = LayerList(exclude_modules)
        self.globs = Globs(exclude_modules, "quantization_config (modelopt): exclude_modules")
        self.kv_cache = kv_cache or Fp8KVCacheMethod()

    @classmethod
    def get_name(cls) -> str:
        """modelopt."""
        return "modelopt"

    @classmethod
    def get_config_filenames(cls) -> Sequence[str]:
        """ModelOpt's own file."""
        return ("hf_quant_config.json",)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None
    ) -> str | None:
        """Claim ``hf_quant_config.json``, which names the producer, not the method."""
        if hf_quant_cfg.get("quant_method") is not None:
            return None
        producer = hf_quant_cfg.get("producer")
        named = isinstance(producer, Mapping) and producer.get("name") == "modelopt"
        inner = hf_quant_cfg.get("quantization")
        found = isinstance(inner, Mapping) and "quant_algo" in inner
        return "modelopt" if named or found else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelOptConfig:
        """See `QuantizationConfig.from_config`."""
        where = "quantization_config (modelopt)"
        fields = Fields(config, where)
        if "quantization" in config:
            fields = Fields(config["quantization"], f"{where}: quantization")
        algo = fields.text("quant_algo").upper()
        layers = {}
        default = None
        if algo == "MIXED_PRECISION":
            named = Fields(fields.values.get("quantized_layers"), f"{where}: quantized_layers")
            for name, value in named.values.items():
                inner = Fields(value, f"{named.where}: {name}")
                layers[name] = _scheme(inner, inner.text("quant_algo").upper())
        else:
            default = _scheme(fields, algo)
        excluded = fields.strings("exclude_modules") or fields.strings("ignore")
        return cls(algo, default, layers, excluded, _kv_cache(fields))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """Every linear layer but those that a pattern excludes."""
        if not isinstance(layer, torch.nn.Linear):
            return None
        if self.globs.match(prefix) or is_listed(prefix, self.exclude_modules):
            return None
        return self.layers.get(prefix, self.default)

    def notes(self) -> Sequence[str]:
        """A quantized KV cache must be asked for."""
        return self.kv_cache.notes()

    def unapplied(self, name: str) -> str | None:
        """Scales of quantized attention, but for those of an FP8 cache."""
        return KV_CACHE_SCALES if is_kv_cache_scale(name) else None

    def get_kv_cache_method(self) -> Fp8KVCacheMethod:
        """See `QuantizationConfig.get_kv_cache_method`."""
        return self.kv_cache

    def describe(self) -> str:
        """The schemes."""
        schemes = [*self.layers.values(), *([self.default] if self.default is not None else [])]
        return "; ".join(dict.fromkeys(scheme.describe() for scheme in schemes)) or self.algo


def _kv_cache(fields: Fields) -> Fp8KVCacheMethod:
    if fields.values.get("kv_cache_quant_algo") is not None:
        return Fp8KVCacheMethod.from_name(fields.text("kv_cache_quant_algo"))
    return Fp8KVCacheMethod.from_scheme(fields.values.get("kv_cache_scheme"), fields.where)


def _scheme(fields: Fields, algo: str) -> LinearScheme:
    found = _SCHEMES.get(algo)
    if found is None:
        why = f" ({_REFUSED[algo]})" if algo in _REFUSED else ""
        raise UnsupportedQuantizationError(
            f"{fields.where}: quant_algo {algo!r} is not supported{why}; "
            f"supported: {', '.join(_SCHEMES)}"
        )
    size = {NvFp4Scheme: 16, Mxfp8Scheme: 32, MxFp4Scheme: 32}.get(type(found))
    if size is not None:
        fields.integer("group_size", allowed=(size,), default=size)
    return found
