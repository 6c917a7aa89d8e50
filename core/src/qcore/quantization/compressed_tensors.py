"""compressed-tensors, as llm-compressor writes it: the config, and which scheme a layer has.

The config has groups, each with targets (see `qcore.quantization.targets`) and a description of
weights and activations, and a list of layers to ignore. A layer takes the group that names it most
closely. The formats are in `qcore.quantization.compressed_schemes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.quantization.base import LinearScheme, QuantizationConfig
from qcore.quantization.compressed_schemes import (
    Int8Scheme,
    IntQuantizedScheme,
    PackQuantizedScheme,
)
from qcore.quantization.fields import Fields
from qcore.quantization.integer import IntegerWeights
from qcore.quantization.targets import Targets

__all__ = ["CompressedTensorsConfig"]

_FORMATS = ("pack-quantized", "int-quantized")
_ACT_ORDER = {"group": True, "dynamic": True, "weight": False, "static": False}


@dataclass(frozen=True)
class _Args:
    """How one tensor (weights, or a layer's input) is quantized."""

    fields: Fields
    bits: int
    strategy: str
    group_size: int
    symmetric: bool
    dynamic: bool
    act_order: bool

    @classmethod
    def read(cls, values: object, where: str) -> _Args | None:
        if values is None:
            return None
        fields = Fields(values, where)
        fields.text("type", allowed=("int",), default="int")
        act_order = fields.values.get("actorder")
        if isinstance(act_order, str):
            act_order = _ACT_ORDER.get(act_order.lower())
            if act_order is None:
                raise fields.unsupported("actorder", ", ".join(_ACT_ORDER))
        dynamic = fields.values.get("dynamic", False)
        if dynamic == "local":
            raise fields.unsupported("dynamic", "true, false")
        group_size = fields.group_size("group_size", default=-1)
        strategy = fields.text("strategy", default=_default_strategy(fields.values)).lower()
        if strategy == "group" and group_size == -1:
            strategy = "channel"
        return cls(
            fields=fields,
            bits=fields.integer("num_bits", allowed=range(2, 9), default=8),
            strategy=strategy,
            group_size=group_size if strategy == "group" else -1,
            symmetric=fields.boolean("symmetric", default=True),
            dynamic=fields.boolean("dynamic", default=False),
            act_order=bool(act_order),
        )


def _default_strategy(values: Mapping[str, Any]) -> str:
    """What compressed-tensors takes where no strategy is written."""
    if values.get("dynamic"):
        return "token"
    group_size = values.get("group_size")
    return "tensor" if group_size is None else "channel" if group_size == -1 else "group"


class CompressedTensorsConfig(QuantizationConfig):
    """compressed-tensors' ``quantization_config``.

    Args:
        groups: (targets, scheme) pairs.
        ignore: layers that are not quantized.
        format_name: of the whole checkpoint.
    """

    names_layers: ClassVar[bool] = True

    def __init__(
        self, groups: list[tuple[Targets, LinearScheme]], ignore: Targets, format_name: str
    ) -> None:
        self.groups = groups
        self.ignore = ignore
        self.format_name = format_name

    @classmethod
    def get_name(cls) -> str:
        """compressed-tensors."""
        return "compressed-tensors"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompressedTensorsConfig:
        """See `QuantizationConfig.from_config`."""
        where = "quantization_config (compressed-tensors)"
        fields = Fields(config, where)
        fields.refuse("kv_cache_scheme", why="a quantized KV cache is not supported")
        fields.refuse("transform_config", why="transforms (rotations) are not supported")
        sparsity = Fields(config.get("sparsity_config") or {}, f"{where}: sparsity_config")
        sparsity.text("format", allowed=("dense",), default="dense")
        format_name = fields.text("format", default="mixed-precision")
        groups = Fields(config.get("config_groups"), f"{where}: config_groups")
        found = []
        for name, value in groups.values.items():
            group = Fields(value, f"{groups.where}: {name}")
            targets = Targets(group.strings("targets"), f"{group.where}: targets")
            found.append((targets, cls._scheme(group, format_name)))
        ignore = Targets(fields.strings("ignore"), f"{where}: ignore")
        return cls(found, ignore, format_name)

    @staticmethod
    def _scheme(group: Fields, format_name: str) -> LinearScheme:
        form = group.text("format", default=format_name).lower()
        if form not in _FORMATS:
            raise UnsupportedQuantizationError(
                f"{group.where}: format {form!r} is not supported; supported: {', '.join(_FORMATS)}"
            )
        group.refuse("output_activations", why="quantized outputs are not supported")
        weights = _Args.read(group.values.get("weights"), f"{group.where}: weights")
        inputs = _Args.read(
            group.values.get("input_activations"), f"{group.where}: input_activations"
        )
        if weights is None:
            raise UnsupportedQuantizationError(f"{group.where}: weights are not quantized")
        if weights.dynamic:
            raise weights.fields.unsupported("dynamic", "false")
        if inputs is not None:
            return _int8(form, weights, inputs)
        if weights.strategy not in ("group", "channel", "tensor"):
            raise weights.fields.unsupported("strategy", "group, channel, tensor")
        if weights.strategy == "tensor" and not weights.symmetric:
            raise weights.fields.unsupported("symmetric", "true, with one scale for the tensor")
        kind = PackQuantizedScheme if form == "pack-quantized" else IntQuantizedScheme
        return kind(
            IntegerWeights(
                bits=weights.bits,
                group_size=weights.group_size,
                zero_points=not weights.symmetric,
                has_g_idx=weights.act_order and weights.strategy == "group",
            ),
            one_scale=weights.strategy == "tensor",
        )

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """The scheme of the group that names the layer most closely."""
        if self.ignore.rank(layer, prefix) is not None:
            return None
        ranked = [(targets.rank(layer, prefix), scheme) for targets, scheme in self.groups]
        named = [(rank, scheme) for rank, scheme in ranked if rank is not None]
        return min(named, key=lambda pair: pair[0])[1] if named else None

    def describe(self) -> str:
        """The format and the schemes."""
        schemes = dict.fromkeys(scheme.describe() for _, scheme in self.groups)
        return f"{self.format_name}: {'; '.join(schemes)}"


def _int8(form: str, weights: _Args, inputs: _Args) -> Int8Scheme:
    """W8A8, the one scheme with integer activations."""
    if form != "int-quantized":
        raise UnsupportedQuantizationError(
            f"{inputs.fields.where}: quantized activations with the format {form!r} are not "
            "supported; supported: with int-quantized"
        )
    for args in (weights, inputs):
        if args.bits != 8:
            raise args.fields.unsupported("num_bits", "8, where activations are quantized")
    if weights.strategy not in ("channel", "tensor"):
        raise weights.fields.unsupported("strategy", "channel, tensor, with int8 activations")
    if not weights.symmetric:
        raise weights.fields.unsupported("symmetric", "true, with int8 activations")
    wanted = "token" if inputs.dynamic else "tensor"
    if inputs.strategy != wanted:
        kind = "dynamic" if inputs.dynamic else "static"
        raise inputs.fields.unsupported("strategy", f"{wanted}, for {kind} activations")
    return Int8Scheme(
        per_channel=weights.strategy == "channel",
        static=not inputs.dynamic,
        symmetric=inputs.symmetric,
    )
