"""`QuantizeScheme`: what weights and activations are rounded to, and the names of schemes.

One name means the same in `qcore quantize`, which writes a checkpoint, and in ``quantize=``, with
which `load_model` rounds while it loads. Integers, ``int<bits>[-asym]-<g<size>|channel>``:

================  =====  ===============  ===============  =====================================
scheme            bits   zero points      one scale for    also called
================  =====  ===============  ===============  =====================================
int4-g128         4      no               128 inputs       ``int4``, ``w4a16``
int4-g32          4      no               32 inputs        any size of 8 or more
int4-channel      4      no               output channel
int4-asym-g128    4      yes              128 inputs       ``int4-asym``
int2-g32          2      no               32 inputs
int8-g128         8      no               128 inputs
int8-channel      8      no               output channel   ``int8-weight-only``, ``w8a16``
================  =====  ===============  ===============  =====================================

These leave activations as they are, and so do all names that end in ``-weight-only``. The others:

================  =============================  ================================================
scheme            weights                        activations
================  =============================  ================================================
int8              int8, output channel           int8, a scale for each token; ``w8a8``
int8-static       int8, output channel           int8, one scale, calibrated
int8-static-asym  int8, output channel           int8, one scale and zero point, calibrated
fp8               e4m3, output channel           e4m3, a scale for each token; ``fp8-channel``
fp8-tensor        e4m3, one scale                e4m3, one scale, computed at run time
fp8-block         e4m3, blocks of 128 x 128      e4m3, a scale for 128 inputs of each token
fp8-static        e4m3, one scale                e4m3, one scale, calibrated
mxfp8             e4m3, 2**n for 32 inputs       the same
mxfp4             e2m1, 2**n for 32 inputs       the same
nvfp4             e2m1, e4m3 for 16 inputs, and  the same; the tensor's scale is calibrated, or
                  float32 for the tensor         computed for each token where nothing was
================  =============================  ================================================

``fp8-weight-only``, ``fp8-tensor-weight-only``, ``fp8-block-weight-only``, ``mxfp8-weight-only``,
``mxfp4-weight-only`` and ``nvfp4-weight-only`` have the weights of these.

All are formats of compressed-tensors (`qcore.quantize.config_groups`). There, 3, 5, 6 and 7 bits
have been packed in two ways under one name; with 2, 4 and 8 a code never crosses a word, so every
reader agrees, and those are the widths that are written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qcore.errors import ConfigError

__all__ = ["FP8_BLOCK", "SCHEME_EXAMPLES", "SCHEME_NAMES", "QuantizeScheme"]

FP8_BLOCK = 128
"""Rows and columns of a block of ``fp8-block``, and inputs that share a scale there."""

SCHEME_EXAMPLES = (
    "int4-g128",
    "int4-g64",
    "int4-g32",
    "int4-channel",
    "int4-asym-g128",
    "int2-g32",
    "int8-g128",
    "int8-channel",
)
"""Integer schemes in use; `QuantizeScheme.parse` reads others of the same form."""

_NAMED: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int", "bits": 8, "inputs": "dynamic"},
    "int8-static": {"weights": "int", "bits": 8, "inputs": "static"},
    "int8-static-asym": {
        "weights": "int",
        "bits": 8,
        "inputs": "static",
        "symmetric_inputs": False,
    },
    "fp8": {"weights": "fp8", "bits": 8, "inputs": "dynamic"},
    "fp8-weight-only": {"weights": "fp8", "bits": 8},
    "fp8-tensor": {"weights": "fp8-tensor", "bits": 8, "inputs": "dynamic"},
    "fp8-tensor-weight-only": {"weights": "fp8-tensor", "bits": 8},
    "fp8-static": {"weights": "fp8-tensor", "bits": 8, "inputs": "static"},
    "fp8-block": {"weights": "fp8-block", "bits": 8, "inputs": "dynamic"},
    "fp8-block-weight-only": {"weights": "fp8-block", "bits": 8},
    "mxfp8": {"weights": "mxfp8", "bits": 8, "group_size": 32, "inputs": "dynamic"},
    "mxfp8-weight-only": {"weights": "mxfp8", "bits": 8, "group_size": 32},
    "mxfp4": {"weights": "mxfp4", "bits": 4, "group_size": 32, "inputs": "dynamic"},
    "mxfp4-weight-only": {"weights": "mxfp4", "bits": 4, "group_size": 32},
    "nvfp4": {"weights": "nvfp4", "bits": 4, "group_size": 16, "inputs": "static"},
    "nvfp4-weight-only": {"weights": "nvfp4", "bits": 4, "group_size": 16},
}

SCHEME_NAMES = (*SCHEME_EXAMPLES, *_NAMED)
"""Every scheme with a name of its own, and the integer schemes in use."""

_ALIASES = {
    "int4": "int4-g128",
    "w4a16": "int4-g128",
    "int4-asym": "int4-asym-g128",
    "int8-weight-only": "int8-channel",
    "w8a16": "int8-channel",
    "w8a8": "int8",
    "fp8-channel": "fp8",
    "fp8-dynamic": "fp8",
    "fp8-channel-weight-only": "fp8-weight-only",
}
_FORM = re.compile(r"int([248])(-asym)?-(?:g([1-9]\d{0,5})|channel)")


@dataclass(frozen=True)
class QuantizeScheme:
    """What a layer is rounded to.

    Attributes:
        weights: ``int``, ``fp8`` (by output channel), ``fp8-tensor``, ``fp8-block``, ``mxfp8``,
            ``mxfp4`` or ``nvfp4``.
        bits: of a code.
        symmetric: the weights have no zero points.
        group_size: inputs that share a scale; -1 for all of an output channel or of the tensor.
        inputs: how the reader scales activations: ``dynamic``, ``static`` (calibrated) or None, for
            not rounding them at all.
        symmetric_inputs: the activations have no zero point.
    """

    weights: str
    bits: int
    symmetric: bool = True
    group_size: int = -1
    inputs: str | None = None
    symmetric_inputs: bool = True

    @classmethod
    def parse(cls, text: str | QuantizeScheme) -> QuantizeScheme:
        """The scheme that ``text`` names; see the module.

        Raises:
            ConfigError: there is no such scheme; the message lists them.
        """
        if isinstance(text, QuantizeScheme):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"scheme is {text!r}; it must be a name such as 'int4-g128'")
        name = text.strip().lower()
        name = _ALIASES.get(name, name)
        if name in _NAMED:
            return cls(**_NAMED[name])
        match = _FORM.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"scheme {text!r} cannot be read; write int<2|4|8>[-asym]-g<size> or "
                f"int<2|4|8>[-asym]-channel, for instance: {', '.join(SCHEME_EXAMPLES)}; or one of "
                + ", ".join(_NAMED)
            )
        group_size = int(match[3]) if match[3] else -1
        if 0 < group_size < 8:
            raise ConfigError(f"scheme {text!r}: groups are of 8 inputs or more")
        return cls("int", int(match[1]), symmetric=match[2] is None, group_size=group_size)

    @property
    def packed(self) -> bool:
        """Whether the weights are integers in words; int8 that is multiplied as such is not."""
        return self.weights == "int" and self.inputs is None

    @property
    def calibrated(self) -> bool:
        """Whether the activations' scale comes from calibration, where there was one."""
        return self.inputs == "static"

    @property
    def needs_calibration(self) -> bool:
        """Whether there is nothing to take the place of a calibrated scale."""
        return self.calibrated and self.weights != "nvfp4"

    def groups(self, in_features: int) -> int:
        """How many scales a row of the scales has."""
        if self.weights == "fp8-block":
            return -(-in_features // FP8_BLOCK)
        return 1 if self.group_size == -1 else in_features // self.group_size

    def refusal(self, in_features: int) -> str | None:
        """Why a layer of so many inputs cannot have this scheme; None where it can."""
        if self.group_size == -1 or in_features % self.group_size == 0:
            return None
        if self.weights != "int":
            return f"K={in_features} is no multiple of the block of {self.group_size} of {self}"
        fitting = [size for size in (256, 128, 64, 32, 16, 8) if in_features % size == 0]
        hint = f"groups of {', '.join(map(str, fitting))} would fit" if fitting else "no size fits"
        return f"K={in_features} is no multiple of the group of {self.group_size}; {hint}"

    def __str__(self) -> str:
        for name, fields in _NAMED.items():
            if self == QuantizeScheme(**fields):
                return name
        asym = "" if self.symmetric else "-asym"
        return (
            f"int{self.bits}{asym}-{'channel' if self.group_size == -1 else f'g{self.group_size}'}"
        )
