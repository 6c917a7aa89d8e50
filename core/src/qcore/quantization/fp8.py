"""The method ``fp8``: e4m3 weights per tensor, channel or block, as DeepSeek's and transformers'.

The config has ``activation_scheme`` (dynamic or static), ``weight_block_size`` ([128, 128] or
nothing) and a list of layers that are not quantized. Scales of blocks are called
``weight_scale_inv``; they multiply. Dynamic activations are rounded per group of a block's width
with blocks, and per token without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.facts.quant_key import (
    FP8_DTYPE,
    GroupShape,
    QuantKey,
    ScaleDesc,
    kFp8DynamicTokenSym,
    kFp8StaticTensorSym,
)
from qcore.quantization.base import QuantizationConfig
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.kv_cache import KV_CACHE_SCALES, Fp8KVCacheMethod, is_kv_cache_scale
from qcore.quantization.layer_lists import LayerList, is_listed

__all__ = ["Fp8Config"]

_FORMATS = ("e4m3", "e4m3fn", "float8_e4m3fn", "e4m3fnuz", "float8_e4m3fnuz")
_POWERS_OF_TWO = (
    "scale_fmt is ue8m0: the model was made for activation scales that are powers of two; "
    "kernels here compute them as amax / 448"
)


class Fp8Config(QuantizationConfig):
    """The ``quantization_config`` of ``quant_method: fp8``.

    Args:
        scheme: of the quantized layers.
        ignored_layers: parts of the names of layers that are not quantized.
        asked: notes about what the config asks for and is not done.
        kv_cache: what the config says about the KV cache; None for nothing.
    """

    def __init__(
        self,
        scheme: Float8Scheme,
        ignored_layers: Sequence[str] = (),
        asked: Sequence[str] = (),
        kv_cache: Fp8KVCacheMethod | None = None,
    ) -> None:
        self.scheme = scheme
        self.ignored_layers = LayerList(ignored_layers)
        self.asked = tuple(asked)
        self.kv_cache = kv_cache or Fp8KVCacheMethod()

    @classmethod
    def get_name(cls) -> str:
        """fp8."""
        return "fp8"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Fp8Config:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (fp8)")
        fmt = fields.text("fmt", allowed=_FORMATS, default="e4m3").removeprefix("float8_")
        fields.text("store_dtype", allowed=("fp8", *_FORMATS), default="fp8")
        static = fields.text("activation_scheme", allowed=("dynamic", "static")) == "static"
        block = _block_size(fields)
        if static:
            inputs = kFp8StaticTensorSym
        elif block is None:
            inputs = kFp8DynamicTokenSym
        else:
            group = ScaleDesc(torch.float32, False, GroupShape(1, block.col))
            inputs = QuantKey(FP8_DTYPE, group)
        names = ("weight_scale", "weight_scale_inv")
        scheme = Float8Scheme(
            "fp8",
            block,
            inputs,
            scale_names=names if block is None else names[::-1],
            input_scale_names=("input_scale", "activation_scale"),
            dtype=torch.float8_e4m3fnuz if fmt == "e4m3fnuz" else FP8_DTYPE,
        )
        asked = []
        if fields.text("scale_fmt", allowed=("float", "ue8m0"), default="float") == "ue8m0":
            asked.append(_POWERS_OF_TWO)
        kv_cache = Fp8KVCacheMethod.from_scheme(config.get("kv_cache_scheme"), fields.where)
        ignored = fields.strings("ignored_layers") or fields.strings("modules_to_not_convert")
        return cls(scheme, ignored, asked, kv_cache)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Float8Scheme | None:
        """Every linear layer but the listed ones."""
        if not isinstance(layer, torch.nn.Linear) or is_listed(prefix, self.ignored_layers):
            return None
        return self.scheme

    def notes(self) -> Sequence[str]:
        """See `QuantizationConfig.notes`."""
        return (*self.asked, *self.kv_cache.notes())

    def unapplied(self, name: str) -> str | None:
        """Scales of quantized attention, but for those of an FP8 cache."""
        return KV_CACHE_SCALES if is_kv_cache_scale(name) else None

    def get_kv_cache_method(self) -> Fp8KVCacheMethod:
        """See `QuantizationConfig.get_kv_cache_method`."""
        return self.kv_cache

    def describe(self) -> str:
        """``fp8 128x128 weights, dynamic 1x128 activations``."""
        return self.scheme.describe()


def _block_size(fields: Fields) -> GroupShape | None:
    sides = fields.values.get("weight_block_size")
    if sides is None:
        return None
    good = isinstance(sides, list) and len(sides) == 2
    if not good or not all(type(side) is int and 1 <= side < 2**31 for side in sides):
        raise fields.wrong("weight_block_size", "two positive integers, such as [128, 128]")
    return GroupShape(*sides)
