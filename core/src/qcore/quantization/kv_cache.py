"""`Fp8KVCacheMethod`: what a checkpoint says about an FP8 KV cache.

Keys and values are kept as e4m3, ``code = round(x / scale)``, with one scale for the keys and one
for the values of each layer. The config says that a cache is meant so; the scales lie beside the
attention's weights under one of several names. This module reads both. `qcore.models.fp8_cache`
makes the cache; a model runs without it too, its cache then in the model's dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qcore.errors import UnsupportedQuantizationError, WeightError
from qcore.quantization.fields import Fields

__all__ = ["KV_CACHE_SCALES", "Fp8KVCacheMethod", "KVScales", "is_kv_cache_scale"]

KV_CACHE_SCALES = "scales and zero points of attention that is quantized in another way"
"""What `QuantizationConfig.unapplied` says of those that no cache takes."""

# self_attn.k_scale (compressed-tensors, vLLM), self_attn.k_proj.k_scale (ModelOpt),
# self_attn.k_proj.output_scale (AutoFP8), self_attn.attn.k_scale, self_attn.kv_scale.
_ATTENTION = r"(?P<owner>(?:.*\.)?\w*(?:attn|attention|mixer)(?:\.\w+)*?)\."
_APPLIED = re.compile(_ATTENTION + r"(?:(?P<of>k|v|kv)_scale|(?P<legacy>[kv])_proj\.output_scale)")
_KNOWN = re.compile(
    _ATTENTION + r"(?:(?:q|k|v|kv|prob)_scale|[qkv]_zero_point|[qkv]_proj\.output_scale|"
    r"prob_output_scale)"
)
_NAMES = {"fp8", "fp8_e4m3", "static"}


@dataclass(frozen=True)
class KVScales:
    """The scales of one layer: ``x = code * scale``.

    Attributes:
        k: of the keys.
        v: of the values.
    """

    k: float = 1.0
    v: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("v", self.v)):
            if not (math.isfinite(value) and value > 0):
                raise WeightError(f"the KV cache's {name} scale is {value}; {_GOOD}")


_GOOD = "it must be positive and finite"


@dataclass(frozen=True)
class Fp8KVCacheMethod:
    """An FP8 KV cache, as a config asks for it.

    Attributes:
        asked: what the config says, in a few words; None if it says nothing.
        dynamic: whether scales are computed while the model runs.
        refused: why such a cache cannot be made; None if it can.
    """

    asked: str | None = None
    dynamic: bool = False
    refused: str | None = None

    @classmethod
    def from_scheme(cls, scheme: object, where: str) -> Fp8KVCacheMethod:
        """From a ``kv_cache_scheme``: compressed-tensors' object, or a name.

        Args:
            scheme: its value.
            where: the config's name in messages.

        Raises:
            CheckpointError: it means nothing.
        """
        if not scheme:
            return cls()
        if isinstance(scheme, str):
            return cls.from_name(scheme)
        fields = Fields(scheme, f"{where}: kv_cache_scheme")
        words = [str(fields.values.get(name)) for name in ("type", "num_bits", "strategy")]
        asked = f"{words[0]} {words[1]} bit, {words[2]}"
        dynamic = fields.boolean("dynamic", default=False)
        try:
            fields.text("type", allowed=("float",), default="int")
            fields.integer("num_bits", allowed=(8,), default=8)
            strategies = ("tensor", "token") if dynamic else ("tensor",)
            fields.text("strategy", allowed=strategies, default="tensor")
            if not fields.boolean("symmetric", default=True):
                raise fields.unsupported("symmetric", "true")
        except UnsupportedQuantizationError as error:
            return cls(asked, refused=str(error))
        return cls(asked, dynamic)

    @classmethod
    def from_name(cls, name: str) -> Fp8KVCacheMethod:
        """From a name, such as ModelOpt's ``kv_cache_quant_algo``."""
        if name.lower() in ("", "none", "auto"):
            return cls()
        if name.lower() in _NAMES:
            return cls(name)
        return cls(name, refused=f"a KV cache in {name} is not supported; supported: FP8")

    def scale_of(self, name: str) -> tuple[str, str] | None:
        """What a tensor of this name is the scale of.

        Returns:
            A module of the attention, or what its engine calls one, and ``k``, ``v`` or ``kv``;
            None if it is no scale of the cache.
        """
        none = self.dynamic or self.refused is not None
        found = None if none else _APPLIED.fullmatch(name)
        return None if found is None else (found["owner"], found["of"] or found["legacy"])

    def read_scale(self, tensor: torch.Tensor) -> float:
        """The value of a scale.

        Raises:
            WeightError: it is not one positive, finite float.
        """
        if tensor.numel() != 1 or not tensor.is_floating_point():
            given = str(tensor.dtype).removeprefix("torch.")
            raise WeightError(f"{given} {list(tensor.shape)}; it must be one float")
        value = float(tensor.to(torch.float32))
        if not (math.isfinite(value) and value > 0):
            raise WeightError(f"{value}; {_GOOD}")
        return value

    def notes(self) -> Sequence[str]:
        """What the user should know about what the config asks for."""
        if self.asked is None:
            return ()
        asks = f"the config asks for a quantized KV cache ({self.asked})"
        if self.refused is not None:
            return (f"{asks}; it stays in the model's dtype: {self.refused}",)
        return (f"{asks}; qcore.models.fp8_cache(model) makes it, none else is quantized",)


def is_kv_cache_scale(name: str) -> bool:
    """Whether a tensor of this name is a scale or a zero point of quantized attention."""
    return _KNOWN.fullmatch(name) is not None
