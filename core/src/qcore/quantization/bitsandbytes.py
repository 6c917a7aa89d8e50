"""The method ``bitsandbytes``: LLM.int8, NF4 and FP4, as ``save_pretrained`` writes them.

For a layer of K inputs and N outputs, with B blocks of 64 weights of the flattened weight:

===================================  =====================  ========================================
LLM.int8
weight                               int8 [N, K]            ``w = weight * SCB / 127``
SCB                                  float32 [N]            the largest magnitude of each row
weight_format                        uint8 []               0: rows as they are
NF4, FP4
weight                               uint8 [N*K/2, 1]       two codes in a byte, the first one high
weight.quant_map                     float32 [16]           the value of each code
weight.absmax                        float32 [B]            ``w = quant_map[code] * absmax``
weight.quant_state.bitsandbytes__*   uint8 [...]            JSON: shape, blocksize, quant_type ...
with double quantization
weight.absmax                        uint8 [B]              ``absmax = nested_quant_map[code] *``
weight.nested_quant_map              float32 [256]          ``nested_absmax + nested_offset``
weight.nested_absmax                 float32 [B/256]        (the offset is in the JSON)
===================================  =====================  ========================================

Source: ``QuantState`` and ``Linear8bitLt`` of bitsandbytes 0.50. LLM.int8 rounds activations to
int8 at run time except for outliers; here the weights are int8 and activations stay as they are,
which is nearer to the original model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qcore.errors import CheckpointError, UnsupportedQuantizationError, WeightError
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.params import ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.codebook import BlockCodes, codes_from_bytes
from qcore.quantization.compressed_schemes import IntQuantizedScheme
from qcore.quantization.fields import Fields
from qcore.quantization.integer import IntegerWeights
from qcore.quantization.json_text import parse_json
from qcore.quantization.layer_lists import LayerList, is_listed
from qcore.quantization.renamed import RenamedScheme

__all__ = ["BitsAndBytesConfig"]

_BYTES = (torch.uint8,)
_F32 = (torch.float32,)
_BLOCKS = (64, 32, 128, 256, 512, 1024, 2048, 4096)
_MAX_STATE = 1 << 16
_STATE = "weight.quant_state.bitsandbytes__"
_NESTED = "nested_"

_NOT_ROUNDED = (
    "LLM.int8 rounds activations to int8 at run time, except for outliers; here they stay as they "
    "are, which is nearer to the original model"
)


@dataclass(frozen=True)
class _Int8Scheme(RenamedScheme):
    """LLM.int8: the magnitudes of the rows are 127 scales."""

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Turn magnitudes into scales."""
        layout = tensors.get("weight_format")
        if layout is not None and int(layout) != 0:
            raise WeightError(
                f"weight_format is {int(layout)}, a layout of one generation of GPUs, which early "
                "versions of bitsandbytes saved; load and save the model with a newer one"
            )
        scaled = {**tensors, "SCB": tensors["SCB"].to(torch.float32) / 127.0}
        return super().canonicalize(scaled, K, N, act_dtype)


def _int8() -> LinearScheme:
    return _Int8Scheme(
        "bitsandbytes int8 weights",
        IntQuantizedScheme(IntegerWeights(8, -1, zero_points=False)),
        {"weight": "weight", "weight_scale": "SCB"},
        {"weight_format": ParamSpec(((), (1,)), _BYTES, optional=True, about="the layout")},
    )


@dataclass(frozen=True)
class _FourBitScheme(LinearScheme):
    """NF4 or FP4.

    Attributes:
        quant_type: nf4 or fp4.
        double: whether the magnitudes are quantized too.
        block_size: weights that share a magnitude.
    """

    quant_type: str
    double: bool
    block_size: int = _BLOCKS[0]

    @property
    def _codes(self) -> BlockCodes:
        return BlockCodes(4, self.block_size)

    @property
    def _state_name(self) -> str:
        return _STATE + self.quant_type

    def describe(self) -> str:
        """``bitsandbytes nf4 g64, double quantization``."""
        double = ", double quantization" if self.double else ""
        return f"bitsandbytes {self.quant_type} g{self.block_size}{double}"

    def refined(self, shapes: Mapping[str, tuple[int, ...]]) -> _FourBitScheme:
        """Settle what the config does not say, from how many magnitudes there are."""
        weight, blocks = shapes.get("weight"), shapes.get("weight.absmax")
        double = f"weight.{_NESTED}absmax" in shapes
        if not weight or not blocks:
            return self
        size = next((b for b in _BLOCKS if -(-2 * weight[0] // b) == blocks[0]), self.block_size)
        return replace(self, double=double, block_size=size)

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        blocks = self._codes.num_blocks(K, N)
        magnitudes = _BYTES if self.double else _F32
        specs = {
            "weight": ParamSpec(((-(-N * K // 2), 1),), _BYTES, about="codes"),
            "weight.quant_map": ParamSpec(((16,),), _F32, about="values of the codes"),
            "weight.absmax": ParamSpec(((blocks,),), magnitudes, about="magnitudes"),
            self._state_name: ParamSpec(((None,),), _BYTES, about="shape and block size"),
        }
        if self.double:
            specs["weight.nested_absmax"] = ParamSpec(((None,),), _F32, about="outer magnitudes")
            specs["weight.nested_quant_map"] = ParamSpec(((256,),), _F32, about="inner values")
        return specs

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """None: the weight is flat."""
        return None

    def shape_tensor(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """The JSON."""
        return self._state_name if self._state_name in shapes else None

    def read_shape(self, tensor: torch.Tensor) -> tuple[int, int]:
        """From the JSON."""
        N, K = _shape(_state(tensor))
        return K, N

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> CodebookLinearLayerConfig:
        """A "codebook" layer."""
        return self._codes.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Check the JSON, and undo the double quantization."""
        state = _state(tensors[self._state_name])
        if _shape(state) != (N, K):
            raise WeightError(f"quant_state says {list(_shape(state))}; the layer is [{N}, {K}]")
        for name, ours in (("blocksize", self.block_size), ("quant_type", self.quant_type)):
            if state.get(name) != ours:
                raise WeightError(f"quant_state: {name} is {state.get(name)!r}; needed is {ours!r}")
        scale = tensors["weight.absmax"]
        if self.double:
            scale = _magnitudes(scale, tensors, state)
        return self._codes.canonical(
            K,
            N,
            act_dtype,
            codes=codes_from_bytes(tensors["weight"]),
            codebook=tensors["weight.quant_map"],
            scale=scale,
        )


def _magnitudes(
    codes: torch.Tensor, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> torch.Tensor:
    """The magnitudes that were quantized themselves."""
    outer, size, offset = (
        tensors["weight.nested_absmax"],
        state.get("nested_blocksize"),
        state.get("nested_offset"),
    )
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise WeightError(f"quant_state: nested_blocksize is {size!r}; it must be positive")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)):
        raise WeightError(f"quant_state: nested_offset is {offset!r}; it must be a number")
    if outer.numel() != -(-codes.numel() // size):
        raise WeightError(
            f"weight.nested_absmax has {outer.numel()} values; {codes.numel()} magnitudes in "
            f"blocks of {size} need {-(-codes.numel() // size)}"
        )
    spread = outer.repeat_interleave(min(size, codes.numel()))[: codes.numel()]
    return tensors["weight.nested_quant_map"][codes.int()] * spread + float(offset)


def _state(tensor: torch.Tensor) -> dict[str, Any]:
    if tensor.numel() > _MAX_STATE:
        raise WeightError(f"quant_state has {tensor.numel()} bytes")
    try:
        state = parse_json(bytes(tensor.reshape(-1).tolist()))
    except ValueError as error:
        raise WeightError(f"quant_state is no JSON: {error}") from None
    if not isinstance(state, dict):
        raise WeightError("quant_state is no JSON object")
    return state


def _shape(state: Mapping[str, Any]) -> tuple[int, int]:
    shape = state.get("shape")
    good = isinstance(shape, list) and len(shape) == 2 and all(type(s) is int for s in shape)
    if not good or shape is None or min(shape) < 1:
        raise WeightError(f"quant_state: shape is {shape!r}; it must be two sizes")
    return shape[0], shape[1]


class BitsAndBytesConfig(QuantizationConfig):
    """The ``quantization_config`` of ``quant_method: bitsandbytes``.

    Args:
        scheme: of the quantized layers.
        skipped: parts of the names of layers that are not quantized.
        asked: notes about what the config asks for and is not done.
    """

    def __init__(
        self, scheme: LinearScheme, skipped: Sequence[str] = (), asked: Sequence[str] = ()
    ) -> None:
        self.scheme = scheme
        self.skipped = LayerList(skipped)
        self.asked = tuple(asked)

    @classmethod
    def get_name(cls) -> str:
        """bitsandbytes."""
        return "bitsandbytes"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BitsAndBytesConfig:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (bitsandbytes)")
        eight = fields.boolean("load_in_8bit", default=config.get("_load_in_8bit") or False)
        four = fields.boolean("load_in_4bit", default=config.get("_load_in_4bit") or False)
        if eight == four:
            raise CheckpointError(
                f"{fields.where}: load_in_8bit and load_in_4bit are both {str(eight).lower()}; "
                "one of them must be true"
            )
        skipped = fields.strings("llm_int8_skip_modules")
        if eight:
            fields.refuse(
                "llm_int8_has_fp16_weight",
                why="the weights are not stored as int8; save the model without it",
            )
            return cls(_int8(), skipped, [_NOT_ROUNDED])
        kind = fields.text("bnb_4bit_quant_type", allowed=("nf4", "fp4"), default="fp4")
        double = fields.boolean("bnb_4bit_use_double_quant", default=False)
        storage = fields.text("bnb_4bit_quant_storage", default="uint8")
        if storage != "uint8":
            raise UnsupportedQuantizationError(
                f"{fields.where}: bnb_4bit_quant_storage is {storage!r}: codes disguised as "
                f"{storage}, as FSDP wants them; quantize the original model with uint8"
            )
        return cls(_FourBitScheme(kind, double), skipped)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """Every linear layer but the listed ones."""
        if not isinstance(layer, torch.nn.Linear) or is_listed(prefix, self.skipped):
            return None
        return self.scheme

    def notes(self) -> Sequence[str]:
        """See `QuantizationConfig.notes`."""
        return self.asked

    def describe(self) -> str:
        """``bitsandbytes nf4 g64, double quantization``."""
        return self.scheme.describe()
