"""compressed-tensors, as llm-compressor writes it: the config, and which scheme a layer has.

The config has groups, each with targets (see `qcore.quantization.targets`) and a description of
weights and activations, and a list of layers to ignore. A layer takes the group that names it most
closely. What a group describes is read in `qcore.quantization.compressed_formats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from qcore.quantization.base import LinearScheme, QuantizationConfig
from qcore.quantization.compressed_formats import read_scheme
from qcore.quantization.compressed_schemes import Int8Scheme
from qcore.quantization.fields import Fields
from qcore.quantization.kv_cache import KV_CACHE_SCALES, Fp8KVCacheMethod, is_kv_cache_scale
from qcore.quantization.targets import Targets

__all__ = ["CompressedTensorsConfig"]

_MAX_GROUPS = 1024


class CompressedTensorsConfig(QuantizationConfig):
    """compressed-tensors' ``quantization_config``.

    Args:
        groups: (targets, scheme) pairs.
        ignore: layers that are not quantized.
        format_name: of the whole checkpoint.
        kv_cache: what the config says about the KV cache; None for nothing.
    """

    names_layers: ClassVar[bool] = True

    def __init__(
        self,
        groups: list[tuple[Targets, LinearScheme]],
        ignore: Targets,
        format_name: str,
        kv_cache: Fp8KVCacheMethod | None = None,
    ) -> None:
        self.groups = groups
        self.ignore = ignore
        self.format_name = format_name
        self.kv_cache = kv_cache or Fp8KVCacheMethod()

    @classmethod
    def get_name(cls) -> str:
        """compressed-tensors."""
        return "compressed-tensors"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompressedTensorsConfig:
        """See `QuantizationConfig.from_config`."""
        where = "quantization_config (compressed-tensors)"
        fields = Fields(config, where)
        fields.refuse("transform_config", why="transforms (rotations) are not supported")
        sparsity = Fields(config.get("sparsity_config") or {}, f"{where}: sparsity_config")
        sparsity.text("format", allowed=("dense",), default="dense")
        format_name = fields.text("format", default="mixed-precision")
        groups = Fields(config.get("config_groups"), f"{where}: config_groups")
        if len(groups.values) > _MAX_GROUPS:
            raise fields.unsupported("config_groups", f"{_MAX_GROUPS} groups")
        found = []
        for name, value in groups.values.items():
            group = Fields(value, f"{groups.where}: {name}")
            targets = Targets(group.strings("targets"), f"{group.where}: targets")
            found.append((targets, read_scheme(group, format_name)))
        ignore = Targets(fields.strings("ignore"), f"{where}: ignore")
        kv_cache = Fp8KVCacheMethod.from_scheme(config.get("kv_cache_scheme"), where)
        return cls(found, ignore, format_name, kv_cache)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """The scheme of the group that names the layer most closely."""
        if self.ignore.rank(layer, prefix) is not None:
            return None
        ranked = [(targets.rank(layer, prefix), scheme) for targets, scheme in self.groups]
        named = [(rank, scheme) for rank, scheme in ranked if rank is not None]
        scheme = min(named, key=lambda pair: pair[0])[1] if named else None
        if isinstance(scheme, Int8Scheme) and prefix.rpartition(".")[2] == "gate_up_proj":
            return replace(scheme, halves=not scheme.per_channel)
        return scheme

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
        """The format and the schemes."""
        schemes = dict.fromkeys(scheme.describe() for _, scheme in self.groups)
        return f"{self.format_name}: {'; '.join(schemes)}"
