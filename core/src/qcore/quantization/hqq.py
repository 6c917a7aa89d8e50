"""The method ``hqq``: codes with float zero points, as transformers and hqq save them.

For a layer of K inputs and N outputs, with B blocks of ``group_size`` weights of the weight
flattened row by row (``axis`` 1); rows of W_q are blocks, several of them packed into one:

============  =========================  =======================================================
W_q           uint8 [B, group_size]      8 bits, and 5 and 6, which are not packed
              uint8 [B/2, group_size]    4 bits: the first half of the blocks in the high bits
              uint8 [B/4, group_size]    2 bits: the first quarter in the highest bits
              uint8 [B/8, group_size]    1 bit
              int32 [ceil(B/10), ...]    3 bits: the first tenth in bits 27 to 29
scale, zero   float [B, 1]               ``w = (code - zero) * scale``
shape         int64 [2]                  N, K
nbits ...     int32 [], uint8 []         what the config says too
============  =========================  =======================================================

Source: ``Quantizer``, ``BitPack`` and ``HQQLinear.state_dict`` of hqq 0.2.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcore.errors import CheckpointError, UnsupportedQuantizationError, WeightError
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.codebook import BlockCodes
from qcore.quantization.fields import Fields
from qcore.quantization.layer_lists import LayerList, is_listed

__all__ = ["HQQConfig"]

_WIDTHS = {8: 8, 6: 8, 5: 8, 4: 4, 3: 3, 2: 2, 1: 1}
"""Bits that a code takes, by bits that it has."""

_SCALARS = (torch.int32, torch.int64, torch.uint8, torch.bool)
_NUMBERS = ("nbits", "group_size", "axis", "view_as_float", "quant_scale", "quant_zero")
_MORE = ("channel_wise", "optimize", "round_zero", "offload_meta", "encoded_state_dict")
_PARTS = ("scale", "zero")
_TEXTS = ("packing", "unpack_view_dtype", "compute_dtype")


@dataclass(frozen=True)
class _HQQScheme(LinearScheme):
    """One layer's parameters.

    Attributes:
        bits: of a code.
        group_size: weights that share a scale; -1 for those of a row.
    """

    bits: int
    group_size: int

    @property
    def _codes(self) -> BlockCodes:
        return BlockCodes(self.bits, self.group_size, has_offset=True)

    def describe(self) -> str:
        """``HQQ 4 bit g64``."""
        group = "channel" if self.group_size == -1 else f"g{self.group_size}"
        return f"HQQ {self.bits} bit {group}"

    def _packed_shape(self, K: int, N: int) -> tuple[int, int]:
        blocks, size = self._codes.num_blocks(K, N), K if self.group_size == -1 else self.group_size
        if K * N % size:
            raise UnsupportedQuantizationError(
                f"group_size {size} does not divide the weight of [{N}, {K}]"
            )
        width = _WIDTHS[self.bits]
        if width == 3:
            return -(-blocks // 10), size
        if blocks % (8 // width):
            raise UnsupportedQuantizationError(
                f"{blocks} blocks of {self.bits} bits do not fill bytes, of which hqq loses some"
            )
        return blocks * width // 8, size

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        blocks = self._codes.num_blocks(K, N)
        packed = torch.int32 if self.bits == 3 else torch.uint8
        floats = ParamSpec(((blocks, 1),), FLOAT_DTYPES, about="of the blocks")
        specs = {
            "W_q": ParamSpec((self._packed_shape(K, N),), (packed,), about="codes"),
            "scale": floats,
            "zero": floats,
            "shape": ParamSpec(((2,),), (torch.int64, torch.int32), optional=True, about="N and K"),
        }
        for name in (*_NUMBERS, *_MORE, "stores_quant_config"):
            specs[name] = ParamSpec(((), (1,)), _SCALARS, optional=True, about="of the config")
        for name in _TEXTS:
            specs[name] = ParamSpec(
                ((None,),), (torch.uint8,), optional=True, about="of the config"
            )
        return specs

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """None: the rows are blocks."""
        return None

    def shape_tensor(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """``shape``."""
        return "shape" if "W_q" in shapes and shapes.get("shape") == (2,) else None

    def read_shape(self, tensor: torch.Tensor) -> tuple[int, int]:
        """From ``shape``."""
        N, K = (int(size) for size in tensor.tolist())
        if N < 1 or K < 1:
            raise WeightError(f"shape is [{N}, {K}]")
        return K, N

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> CodebookLinearLayerConfig:
        """A "codebook" layer."""
        return self._codes.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Unpack the codes; a zero point becomes an offset."""
        if "shape" in tensors and tensors["shape"].tolist() != [N, K]:
            raise WeightError(f"shape says {tensors['shape'].tolist()}; the layer is [{N}, {K}]")
        size = K if self.group_size == -1 else self.group_size
        needed = {"nbits": self.bits, "group_size": size, "axis": 1}
        for name in _NUMBERS:
            if name in tensors and int(tensors[name]) != needed.get(name, 0):
                raise WeightError(
                    f"{name} says {int(tensors[name])}; the config, {needed.get(name, 0)}"
                )
        scale, zero = tensors["scale"], tensors["zero"].to(torch.float32)
        codes = _unpack(tensors["W_q"], _WIDTHS[self.bits])
        if bool((codes >> self.bits).any()):
            raise WeightError(f"W_q has codes up to {int(codes.max())} for {self.bits} bits")
        return self._codes.canonical(
            K,
            N,
            act_dtype,
            codes=codes,
            codebook=torch.arange(1 << self.bits, device=scale.device),
            scale=scale,
            offset=-zero * scale.to(torch.float32),
        )


def _unpack(packed: torch.Tensor, width: int) -> torch.Tensor:
    """The codes, flat; the parts of the blocks from the highest bits to the lowest."""
    top = 27 if width == 3 else 8 - width
    parts = [(packed >> shift) & ((1 << width) - 1) for shift in range(top, -1, -width)]
    return torch.cat(parts).to(torch.uint8).reshape(-1)


class HQQConfig(QuantizationConfig):
    """The ``quantization_config`` of ``quant_method: hqq``.

    Args:
        scheme: of the layers that nothing else is said of; None for none.
        skipped: parts of the names of layers that are not quantized.
        tagged: schemes by tag, a layer's name without numbers, ``model`` and ``layers``.
        named: schemes by the layer's whole name.
    """

    def __init__(
        self,
        scheme: LinearScheme | None,
        skipped: Sequence[str] = (),
        tagged: Mapping[str, LinearScheme] | None = None,
        named: Mapping[str, LinearScheme] | None = None,
    ) -> None:
        self.scheme = scheme
        self.skipped = LayerList(skipped)
        self.tagged = dict(tagged or {})
        self.named = dict(named or {})

    @classmethod
    def get_name(cls) -> str:
        """hqq."""
        return "hqq"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HQQConfig:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (hqq)")
        stated = Fields(config.get("quant_config"), f"{fields.where}: quant_config")
        skipped = fields.strings("skip_modules")
        if "weight_quant_params" in stated.values:
            return cls(_scheme(stated), skipped)
        if not stated.values:
            raise CheckpointError(f"{stated.where} is empty")
        tagged = {
            tag: _scheme(Fields(value, f"{stated.where}: {tag}"))
            for tag, value in stated.values.items()
        }
        return cls(None, skipped, tagged)

    @classmethod
    def from_layers(cls, layers: Mapping[str, Mapping[str, int]]) -> HQQConfig:
        """From what each layer's tensors say of it: HQQ's ``save_to_safetensors`` has no config.

        Args:
            layers: by name, the values of ``nbits``, ``group_size``, ``axis`` and the like.

        Raises:
            CheckpointError: a value is missing or means nothing.
            UnsupportedQuantizationError: a value is not supported.
        """
        made: dict[str, LinearScheme] = {}
        for name, values in layers.items():
            where = f"{name} (HQQ)"
            quantized: dict[str, Any] = {
                f"{part}_quant_params": values.get(f"quant_{part}") for part in _PARTS
            }
            flag = {"view_as_float": bool(values.get("view_as_float", 0))}
            quantized["weight_quant_params"] = {**values, **flag, "channel_wise": True}
            made[name] = _scheme(Fields(quantized, where))
        return cls(None, named=made)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """What is said of the layer, of its tag, or of all."""
        if not isinstance(layer, torch.nn.Linear) or is_listed(prefix, self.skipped):
            return None
        if prefix in self.named:
            return self.named[prefix]
        words = [w for w in prefix.split(".") if w not in ("model", "layers") and not w.isdecimal()]
        return self.tagged.get(".".join(words), self.scheme)

    def describe(self) -> str:
        """``HQQ 4 bit g64``."""
        schemes = [
            *self.named.values(),
            *self.tagged.values(),
            *([self.scheme] if self.scheme else []),
        ]
        return "; ".join(dict.fromkeys(scheme.describe() for scheme in schemes))


def _scheme(fields: Fields) -> _HQQScheme:
    fields.refuse(
        "scale_quant_params",
        "zero_quant_params",
        why="quantized scales and zero points, which hqq cannot save itself any more",
    )
    weights = Fields(
        fields.values.get("weight_quant_params"), f"{fields.where}: weight_quant_params"
    )
    bits = weights.integer("nbits", allowed=_WIDTHS)
    if weights.integer("axis", default=1) != 1:
        raise UnsupportedQuantizationError(
            f"{weights.where}: axis is {weights.values['axis']!r}: groups go across outputs, so "
            "that every weight of a row has a scale of its own; quantize with axis 1"
        )
    weights.refuse(
        "view_as_float", why="codes disguised as floats; quantize with view_as_float false"
    )
    if not weights.boolean("channel_wise", default=True):
        raise weights.unsupported("channel_wise", "true")
    return _HQQScheme(bits, weights.group_size("group_size", default=-1))
