"""`QuantizeScheme`: what a weight is rounded to, and how it is written in a config.

A scheme is written ``int<bits>[-asym][-g<size>|-channel]``:

================  =====  ===============  ===============  =====================================
scheme            bits   zero points      one scale for    activations; also called
================  =====  ===============  ===============  =====================================
int4-g128         4      no               128 inputs       as they are; ``int4``, ``w4a16``
int4-g32          4      no               32 inputs        as they are; any size of 8 or more
int4-channel      4      no               output channel   as they are
int4-asym-g128    4      yes              128 inputs       as they are; ``int4-asym``
int2-g32          2      no               32 inputs        as they are
int8-g128         8      no               128 inputs       as they are
int8-channel      8      no               output channel   as they are; ``int8-weight-only``,
                                                           ``w8a16``
int8              8      no               output channel   int8, a scale for each token, made at
                                                           run time; ``w8a8``
================  =====  ===============  ===============  =====================================

All are formats of compressed-tensors: ``int8`` is its int-quantized, the others its pack-quantized.
There, 3, 5, 6 and 7 bits have been packed in two ways under one name; with 2, 4 and 8 a code never
crosses a word, so every reader agrees, and those are the widths that are written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qcore.errors import ConfigError

__all__ = ["SCHEME_EXAMPLES", "QuantizeScheme"]

SCHEME_EXAMPLES = (
    "int4-g128",
    "int4-g64",
    "int4-g32",
    "int4-channel",
    "int4-asym-g128",
    "int2-g32",
    "int8-g128",
    "int8-channel",
    "int8",
)
"""Schemes in use; `QuantizeScheme.parse` reads others of the same form."""

_ALIASES = {
    "int4": "int4-g128",
    "w4a16": "int4-g128",
    "int4-asym": "int4-asym-g128",
    "int8-weight-only": "int8-channel",
    "w8a16": "int8-channel",
    "w8a8": "int8",
}
_FORM = re.compile(r"int([248])(-asym)?-(?:g([1-9]\d{0,5})|channel)")


@dataclass(frozen=True)
class QuantizeScheme:
    """What a weight is rounded to.

    Attributes:
        bits: of a code: 2, 4 or 8.
        symmetric: no zero points.
        group_size: inputs that share a scale; -1 for all of an output channel.
        int8_activations: the reader quantizes the input too, to int8 with a scale for each token.
    """

    bits: int
    symmetric: bool = True
    group_size: int = -1
    int8_activations: bool = False

    @classmethod
    def parse(cls, text: str | QuantizeScheme) -> QuantizeScheme:
        """The scheme that ``text`` describes; see the module.

        Raises:
            ConfigError: the text has another form; the message lists examples.
        """
        if isinstance(text, QuantizeScheme):
            return text
        name = text.strip().lower()
        name = _ALIASES.get(name, name)
        if name == "int8":
            return cls(bits=8, int8_activations=True)
        match = _FORM.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"scheme {text!r} cannot be read; write int<2|4|8>[-asym]-g<size> or "
                f"int<2|4|8>[-asym]-channel, for instance: {', '.join(SCHEME_EXAMPLES)}"
            )
        group_size = int(match[3]) if match[3] else -1
        if 0 < group_size < 8:
            raise ConfigError(f"scheme {text!r}: groups are of 8 inputs or more")
        return cls(bits=int(match[1]), symmetric=match[2] is None, group_size=group_size)

    @property
    def format(self) -> str:
        """The name of the format in compressed-tensors."""
        return "int-quantized" if self.int8_activations else "pack-quantized"

    def groups(self, in_features: int) -> int:
        """How many scales an output channel has."""
        return 1 if self.group_size == -1 else in_features // self.group_size

    def refusal(self, in_features: int) -> str | None:
        """Why a layer of so many inputs cannot have this scheme; None where it can."""
        if self.group_size == -1 or in_features % self.group_size == 0:
            return None
        fitting = [size for size in (256, 128, 64, 32, 16, 8) if in_features % size == 0]
        hint = f"groups of {', '.join(map(str, fitting))} would fit" if fitting else "no size fits"
        return f"K={in_features} is no multiple of the group of {self.group_size}; {hint}"

    def config_group(self, targets: list[str], *, searched: bool) -> dict[str, Any]:
        """The entry of ``config_groups`` for the layers that ``targets`` name."""
        weights = _arguments(
            bits=self.bits,
            strategy="channel" if self.group_size == -1 else "group",
            symmetric=self.symmetric,
            dynamic=False,
            group_size=None if self.group_size == -1 else self.group_size,
            observer="memoryless_mse" if searched else "memoryless_minmax",
        )
        activations = _arguments(
            bits=8, strategy="token", symmetric=True, dynamic=True, group_size=None, observer=None
        )
        return {
            "format": self.format,
            "input_activations": activations if self.int8_activations else None,
            "output_activations": None,
            "targets": targets,
            "weights": weights,
        }

    def __str__(self) -> str:
        if self.int8_activations:
            return "int8"
        asym = "" if self.symmetric else "-asym"
        return (
            f"int{self.bits}{asym}-{'channel' if self.group_size == -1 else f'g{self.group_size}'}"
        )


def _arguments(
    *,
    bits: int,
    strategy: str,
    symmetric: bool,
    dynamic: bool,
    group_size: int | None,
    observer: str | None,
) -> dict[str, Any]:
    """``QuantizationArgs`` of compressed-tensors, every field written out."""
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": group_size,
        "num_bits": bits,
        "observer": observer,
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": strategy,
        "symmetric": symmetric,
        "type": "int",
        "zp_dtype": None if symmetric else "torch.int8",
    }
