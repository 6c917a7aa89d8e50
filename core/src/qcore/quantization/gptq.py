"""GPTQ, as AutoGPTQ, GPTQModel and auto-round write it.

For a layer of K inputs and N outputs, packed without gaps, lowest bits first:

========  ==============================  =====================================================
qweight   int32 [K * bits / 32, N]        codes packed along K
qzeros    int32 [G, N * bits / 32]        zero points packed along N
scales    float [G, N]
g_idx     int32 [K]                       group of each input
========  ==============================  =====================================================

``w[n, k] = (code - zero) * scale``. Format v1 (``checkpoint_format: gptq``, and where nothing is
said) stores the zero point less one. GPTQModel makes it so by subtracting 1 from every code of a
word at once, so a zero point of 0 borrows from its neighbour; adding to the word gives it back.
Format v2 (``gptq_v2``) stores the zero point itself.

Of 3 bits, 32 codes fill three words, and codes 10 and 21 lie across two. There GPTQModel before
version 7 took its constants for the first and the third word the wrong way round, so that what it
wrote as v1 is not the zero point less one. It read its own files right, and so does this:
``meta.quantizer`` says who wrote a checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.numerics.packing import pack_int32, unpack_dense_int32
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.fields import Fields
from qcore.quantization.integer import IntegerWeights
from qcore.quantization.name_patterns import NamePattern, compile_pattern

__all__ = ["GPTQConfig", "GPTQScheme"]

_BITS = (2, 3, 4, 8)
_FORMATS = ("gptq", "gptq_v2")
_GPTQMODEL = re.compile(r"gptqmodel(?::([0-9]{1,6})|$)")
# What is taken off the words of zero points: 1 in every code; for 3 bits, GPTQModel's before 7.
_ONES = {
    2: (0x55555555,),
    3: (0x24924924, 0x92492492, 0x49249249),
    4: (0x11111111,),
    8: (0x01010101,),
}


@dataclass(frozen=True)
class GPTQScheme(LinearScheme):
    """One layer's parameters.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; -1 for all.
        sym: whether the zero points are all the middle code.
        desc_act: whether inputs were quantized in the order of their activations.
        v2: whether zero points are stored as they are.
        by_gptqmodel: whether GPTQModel before 7 took the ones off the zero points of 3 bits.
    """

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    v2: bool = False
    by_gptqmodel: bool = False

    @property
    def _weights(self) -> IntegerWeights:
        return IntegerWeights(self.bits, self.group_size, not self.sym, self.desc_act)

    def describe(self) -> str:
        """``GPTQ 4 bit g128 symmetric``."""
        return f"GPTQ {self._weights.describe()}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        words = self.bits // math.gcd(self.bits, 32)
        run, G = 32 * words // self.bits, self._weights.num_groups(K)
        for axis, size in (("K", K), ("N", N)):
            if size % run:
                raise UnsupportedQuantizationError(
                    f"GPTQ of {self.bits} bits packs {run} codes to {_words(words)} along K and "
                    f"N; {axis}={size} is no multiple of {run}"
                )
        rows, columns = K * self.bits // 32, N * self.bits // 32
        return {
            "qweight": ParamSpec(((rows, N),), (torch.int32,), about="codes"),
            "qzeros": ParamSpec(((G, columns),), (torch.int32,), about="zero points"),
            "scales": ParamSpec(((G, N),), FLOAT_DTYPES, about="scales"),
            "g_idx": ParamSpec(
                ((K,),),
                (torch.int32, torch.int64),
                optional=not self.desc_act or G == 1,
                about="group of each input",
            ),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``qweight``."""
        shape = shapes.get("qweight", ())
        return (shape[0] * 32 // self.bits, shape[1]) if len(shape) == 2 else None

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MPLinearLayerConfig:
        """An "mp" layer."""
        return self._weights.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Transpose, and undo v1's offset. See `LinearScheme.canonicalize`."""
        packed = tensors["qweight"]
        if self.bits == 3:
            packed = pack_int32(unpack_dense_int32(packed, 3, K, dim=0), 3, dim=0)
        return self._weights.canonical(
            K,
            N,
            act_dtype,
            packed=packed.t(),
            scale=tensors["scales"].t(),
            zeros=self._zeros(tensors["qzeros"], N),
            g_idx=tensors.get("g_idx"),
        )

    def _zeros(self, words: torch.Tensor, N: int) -> torch.Tensor | None:
        """uint8 [N, G]; None where they are all the middle code."""
        stored = unpack_dense_int32(words, self.bits, N, dim=1)
        middle = 1 << (self.bits - 1)
        one_value = bool((stored == stored[0, 0]).all())
        if self.sym and one_value and stored[0, 0] in (middle - 1, middle):
            # Only one convention makes them the middle code, whatever the config says of it.
            return None
        if self.v2:
            return stored.t()
        # A symmetric file of 3 bits whose zero points are not plainly 3 is GPTQModel's.
        if self.bits == 3 and not (self.by_gptqmodel or self.sym):
            return ((stored + 1) & 7).t()
        ones = _ONES[self.bits]
        constants = torch.tensor(ones, dtype=torch.int64).repeat(words.shape[1] // len(ones))
        # Of int64, the conversion keeps the low half: the sum wraps as a word's does.
        added = (words.to(torch.int64) + constants.to(words.device)).to(torch.int32)
        return unpack_dense_int32(added, self.bits, N, dim=1).t()


def _words(count: int) -> str:
    return "a word" if count == 1 else f"{count} words"


@dataclass(frozen=True)
class _Rule:
    """An entry of ``dynamic``: a pattern, and the scheme that it gives (None: not quantized)."""

    pattern: NamePattern
    scheme: GPTQScheme | None


class GPTQConfig(QuantizationConfig):
    """GPTQ's ``quantization_config``.

    Args:
        scheme: of the layers that no rule names.
        lm_head: whether the output layer is quantized too.
        rules: for layers by name, the first that matches counts.
    """

    def __init__(
        self, scheme: GPTQScheme, lm_head: bool = False, rules: Sequence[_Rule] = ()
    ) -> None:
        self.scheme = scheme
        self.lm_head = lm_head
        self.rules = tuple(rules)

    @classmethod
    def get_name(cls) -> str:
        """gptq."""
        return "gptq"

    @classmethod
    def get_config_filenames(cls) -> Sequence[str]:
        """AutoGPTQ's file."""
        return ("quantize_config.json",)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None
    ) -> str | None:
        """Claim AutoGPTQ's first files, which name no method."""
        unnamed = hf_quant_cfg.get("quant_method") is None
        return "gptq" if unnamed and {"bits", "desc_act"} <= set(hf_quant_cfg) else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GPTQConfig:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (gptq)")
        form = fields.text("checkpoint_format", "format", allowed=_FORMATS, default="gptq")
        fields.text("pack_dtype", allowed=("int32", "torch.int32"), default="int32")
        fields.refuse("is_marlin_format", why="re-packed for one GPU kernel; use the original")
        default = cls._scheme(fields, None, form == "gptq_v2", _by_gptqmodel(config))
        dynamic = config.get("dynamic") or {}
        if not isinstance(dynamic, Mapping):
            raise fields.wrong("dynamic", "an object of patterns")
        rules = []
        for text, overrides in dynamic.items():
            sign, pattern = (text[:2], text[2:]) if text[:2] in ("-:", "+:") else ("", text)
            compiled = compile_pattern(pattern, f"{fields.where}: dynamic")
            inner = Fields(overrides or {}, f"{fields.where}: dynamic {text!r}")
            scheme = (
                None
                if sign == "-:"
                else cls._scheme(inner, default, default.v2, _by_gptqmodel(config))
            )
            rules.append(_Rule(compiled, scheme))
        return cls(default, fields.boolean("lm_head", default=False), rules)

    @staticmethod
    def _scheme(
        fields: Fields, base: GPTQScheme | None, v2: bool, by_gptqmodel: bool
    ) -> GPTQScheme:
        """Read a scheme; what is missing comes from ``base``, or is an error."""

        def default(name: str, value: object) -> dict[str, Any]:
            found = getattr(base, name) if base is not None else value
            return {} if found is None else {"default": found}

        bits = fields.integer("bits", allowed=_BITS, **default("bits", None))
        return GPTQScheme(
            bits=bits,
            group_size=fields.group_size("group_size", **default("group_size", None)),
            sym=fields.boolean("sym", **default("sym", True)),
            desc_act=fields.boolean("desc_act", **default("desc_act", False)),
            v2=v2,
            by_gptqmodel=bits == 3 and by_gptqmodel and not v2,
        )

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> GPTQScheme | None:
        """Every linear layer, but the output layer only if the config says so."""
        if not isinstance(layer, torch.nn.Linear):
            return None
        if prefix.rpartition(".")[2] == "lm_head" and not self.lm_head:
            return None
        for rule in self.rules:
            if rule.pattern.match(prefix):
                return rule.scheme
        return self.scheme

    def describe(self) -> str:
        """``GPTQ 4 bit g128 symmetric``."""
        return self.scheme.describe()


def _by_gptqmodel(config: Mapping[str, Any]) -> bool:
    """Whether ``meta.quantizer`` (``gptqmodel:5.8.0``, or a list of such) is GPTQModel before 7."""
    meta = config.get("meta")
    stated = meta.get("quantizer") if isinstance(meta, Mapping) else None
    names = stated if isinstance(stated, list) else [stated]
    found = [_GPTQMODEL.match(name) for name in names if isinstance(name, str)]
    return any(match is not None and int(match[1] or 0) < 7 for match in found)
