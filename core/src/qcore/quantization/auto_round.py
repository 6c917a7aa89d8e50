"""The method ``auto-round``: the layouts of GPTQ and AWQ under auto-round's own config.

``packing_format`` names the layout: ``auto_round:auto_gptq`` (zero points less one),
``auto_round:auto_awq``, or ``auto_round`` and ``auto_round:gptqmodel`` (GPTQ with the zero points
themselves). ``block_name_to_quantize`` names the blocks whose linear layers are quantized, and
``extra_config`` has other parameters for layers by name or pattern; 16 bits mean not quantized.
Where ``data_type`` is not ``int``, `qcore.quantization.auto_round_floats` reads the scheme.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.quantization.auto_round_floats import FLOAT_TYPES, float_scheme
from qcore.quantization.awq import AWQScheme
from qcore.quantization.base import LinearScheme, QuantizationConfig
from qcore.quantization.fields import Fields
from qcore.quantization.gptq import GPTQScheme
from qcore.quantization.name_patterns import NamePattern, compile_pattern

__all__ = ["AutoRoundConfig"]

_PATTERN = re.compile(r"[*+?^$()\[\]{}|\\]")
_Make = Callable[[Fields, int, int, bool], LinearScheme]


class AutoRoundConfig(QuantizationConfig):
    """auto-round's ``quantization_config``.

    Args:
        scheme: of the layers that nothing else is said of.
        blocks: beginnings of the names of quantized layers; none for all.
        named: layers by name, with the scheme or None for not quantized.
        patterns: layers by pattern, the first that matches counts.
    """

    def __init__(
        self,
        scheme: LinearScheme,
        blocks: Sequence[str] = (),
        named: Mapping[str, LinearScheme | None] | None = None,
        patterns: Sequence[tuple[NamePattern, LinearScheme | None]] = (),
    ) -> None:
        self.scheme = scheme
        self.blocks = frozenset(blocks)
        self.named = dict(named or {})
        self.order = {name: index for index, name in enumerate(self.named)}
        self.patterns = tuple(patterns)

    @classmethod
    def get_name(cls) -> str:
        """auto-round."""
        return "auto-round"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AutoRoundConfig:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (auto-round)")
        kind = fields.text("data_type", allowed=("int", *FLOAT_TYPES), default="int")
        if kind == "int" and fields.integer("act_bits", default=16) < 16:
            raise fields.unsupported("act_bits", "16, with int; export as llm_compressor")
        make = _layout(fields) if kind == "int" else None
        scheme = _scheme(fields, None, make)
        if scheme is None:
            raise fields.unsupported("bits", "2, 3, 4, 8")
        named: dict[str, LinearScheme | None] = {}
        patterns = []
        extra = Fields(config.get("extra_config") or {}, f"{fields.where}: extra_config")
        for name, value in extra.values.items():
            found = _scheme(Fields(value, f"{extra.where}: {name}"), fields, make)
            if _PATTERN.search(name):
                patterns.append((compile_pattern(name, extra.where), found))
            else:
                named[name] = found
        return cls(scheme, _blocks(fields), named, patterns)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """What is said of the layer by name, by pattern, or of its block."""
        if not isinstance(layer, torch.nn.Linear):
            return None
        words = prefix.split(".")
        endings = (".".join(words[at:]) for at in range(len(words)))
        given = [name for name in endings if name in self.named]
        if given:
            return self.named[min(given, key=self.order.__getitem__)]
        for pattern, scheme in self.patterns:
            if pattern.search(prefix):
                return scheme
        inside = any(".".join(words[:to]) in self.blocks for to in range(1, len(words) + 1))
        return self.scheme if inside or not self.blocks else None

    def describe(self) -> str:
        """``auto-round: GPTQ 4 bit g128 symmetric``."""
        schemes = [self.scheme, *self.named.values(), *(scheme for _, scheme in self.patterns)]
        words = dict.fromkeys(scheme.describe() for scheme in schemes if scheme is not None)
        return f"auto-round: {'; '.join(words)}"


def _layout(fields: Fields) -> _Make:
    """How a scheme is made, from ``packing_format`` (``backend`` in early files)."""
    form = fields.text("packing_format", "backend", default="auto_round:auto_gptq").lower()
    words = set(form.split(":"))
    if words & {"auto_awq", "awq"}:
        return _awq
    if words & {"auto_gptq", "gptq"}:
        return lambda _, bits, group_size, sym: GPTQScheme(bits, group_size, sym, False)
    if words <= {"auto_round", "gptqmodel"}:
        return lambda _, bits, group_size, sym: GPTQScheme(bits, group_size, sym, False, v2=True)
    raise UnsupportedQuantizationError(
        f"{fields.where}: packing_format {form!r} is not supported; supported: "
        "auto_round:auto_gptq, auto_round:auto_awq, auto_round:gptqmodel, auto_round. For other "
        "number formats export as llm_compressor"
    )


def _awq(fields: Fields, bits: int, group_size: int, sym: bool) -> LinearScheme:
    if bits != 4:
        raise fields.unsupported("bits", "4, with auto_round:auto_awq")
    return AWQScheme(group_size, zero_point=not sym)


def _scheme(fields: Fields, base: Fields | None, make: _Make | None) -> LinearScheme | None:
    """Read a scheme; what is missing comes from ``base``. None for 16 bits and more.

    ``make`` is that of the integer layout; None where the numbers are floats.
    """
    defaults = base.values if base is not None else {}
    if make is None:
        whole = Fields({**defaults, **fields.values}, fields.where)
        return None if whole.integer("bits") >= 16 else float_scheme(whole)

    def default(name: str, value: object = None) -> dict[str, Any]:
        found = defaults.get(name, value)
        return {} if found is None else {"default": found}

    fields.text("data_type", allowed=("int", "float"), default="int")
    bits = fields.integer("bits", allowed=(2, 3, 4, 8, 16, 32), **default("bits"))
    if bits >= 16:
        return None
    group_size = fields.group_size("group_size", **default("group_size"))
    return make(fields, bits, group_size, fields.boolean("sym", **default("sym", True)))


def _blocks(fields: Fields) -> tuple[str, ...]:
    """``block_name_to_quantize``: a list, or names with commas between them."""
    stated = fields.values.get("block_name_to_quantize")
    if isinstance(stated, str):
        stated = [name.strip() for name in stated.split(",")]
    if stated is None:
        return ()
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise fields.wrong("block_name_to_quantize", "names of blocks")
    return tuple(name.strip(".") for name in stated if name)
