"""The method ``torchao``: what ``save_pretrained`` writes as safetensors.

torchao's weights are tensor subclasses; their inner tensors are saved as ``_weight_qdata``,
``_weight_scale`` and so on beside the layer, and the config that made them is in ``config.json``.
For a layer of K inputs and N outputs, with G groups in a row:

==================  ==========================  ================================================
Int8Tensor, IntxUnpackedToInt8Tensor
_weight_qdata       int8 [N, K]                 signed codes
_weight_scale       float [N, 1], [N, G]        ``w = (code - zero_point) * scale``
_weight_zero_point  int8 [N, 1], [N, G]
Float8Tensor
_weight_qdata       e4m3 [N, K]                 ``w = code * scale``
_weight_scale       float32 [N, 1], [1, 1]      per row; per tensor
                    [ceil(N/128), ceil(K/128)]  per block
Int4Tensor
_weight_qdata       int8 [N, K/2]               codes of -8 to 7, the even one in the low half
_weight_scale       float [G, N]                ``w = code * scale + zero_point``
_weight_zero_point  float [G, N]
==================  ==========================  ================================================

Source: ``torchao.prototype.safetensors``, the tensors' classes and their configs, torchao 0.18.
Version 1 of the configs was saved as pickles only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.facts.quant_key import (
    GroupShape,
    QuantKey,
    kFp8Dynamic128Sym,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
)
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.codebook import BlockCodes
from qcore.quantization.compressed_schemes import Int8Scheme, IntQuantizedScheme
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.integer import IntegerWeights
from qcore.quantization.layer_lists import LayerList, is_listed
from qcore.quantization.name_patterns import compile_pattern
from qcore.quantization.renamed import RenamedScheme

__all__ = ["TorchAOConfig"]

_NAMES = {
    "weight": "_weight_qdata",
    "weight_scale": "_weight_scale",
    "weight_zero_point": "_weight_zero_point",
}
_WHERE = "quantization_config (torchao)"


@dataclass(frozen=True)
class _Int4Scheme(LinearScheme):
    """Int4Tensor: signed codes with float zero points that are added.

    Attributes:
        group_size: inputs that share a scale.
    """

    group_size: int

    @property
    def _codes(self) -> BlockCodes:
        return BlockCodes(4, self.group_size, has_offset=True)

    def describe(self) -> str:
        """``torchao int4 g128``."""
        return f"torchao int4 g{self.group_size}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        if K % self.group_size or K % 2:
            raise UnsupportedQuantizationError(
                f"K={K} is no even multiple of the group of {self.group_size}"
            )
        floats = ParamSpec(((K // self.group_size, N),), FLOAT_DTYPES, about="of the groups")
        return {
            "_weight_qdata": ParamSpec(
                ((N, K // 2),), (torch.int8, torch.uint8), about="codes, two in a byte"
            ),
            "_weight_scale": floats,
            "_weight_zero_point": floats,
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From the codes."""
        shape = shapes.get("_weight_qdata", ())
        return (2 * shape[1], shape[0]) if len(shape) == 2 else None

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> CodebookLinearLayerConfig:
        """A "codebook" layer."""
        return self._codes.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Give each code, as it is in its four bits, its signed value."""
        packed = tensors["_weight_qdata"].view(torch.uint8)
        values = torch.arange(16, device=packed.device)
        return self._codes.canonical(
            K,
            N,
            act_dtype,
            codes=torch.stack((packed & 0xF, packed >> 4), dim=-1),
            codebook=torch.where(values < 8, values, values - 16),
            scale=tensors["_weight_scale"].t(),
            offset=tensors["_weight_zero_point"].t(),
        )


class TorchAOConfig(QuantizationConfig):
    """The ``quantization_config`` of ``quant_method: torchao``.

    Args:
        named: (name or ``re:`` pattern, scheme or None), the first that matches counts.
        default: the scheme of all other layers; None for not quantized.
        skipped: parts of the names of layers that are not quantized.
    """

    def __init__(
        self,
        default: LinearScheme | None,
        named: Sequence[tuple[str, LinearScheme | None]] = (),
        skipped: Sequence[str] = (),
    ) -> None:
        self.default = default
        self.skipped = LayerList(skipped)
        self.exact = {name: scheme for name, scheme in named if not name.startswith("re:")}
        self.patterns = [
            (compile_pattern(name[3:], _WHERE), scheme)
            for name, scheme in named
            if name.startswith("re:")
        ]

    @classmethod
    def get_name(cls) -> str:
        """torchao."""
        return "torchao"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TorchAOConfig:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, _WHERE)
        stated = config.get("quant_type")
        if isinstance(stated, str):
            raise UnsupportedQuantizationError(
                f"{_WHERE}: quant_type is {stated!r}, as early versions wrote it with weights as "
                "pickles; quantize the original model with a newer torchao"
            )
        fields.refuse("include_input_output_embeddings", why="embeddings are not quantized here")
        outer = Fields(stated, f"{_WHERE}: quant_type")
        skipped = fields.strings("modules_to_not_convert")
        kind, values = _typed(outer, "default")
        if kind not in ("FqnToConfig", "ModuleFqnToConfig"):
            return cls(_scheme(kind, values), skipped=skipped)
        by_name = values.values.get("fqn_to_config") or values.values.get("module_fqn_to_config")
        inner = Fields(by_name, f"{values.where}: fqn_to_config")
        found = {
            name: None if value is None else _scheme(*_typed(inner, name))
            for name, value in inner.values.items()
        }
        default = found.pop("_default", None)
        return cls(default, list(found.items()), skipped)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """What is said of the weight, of the layer, by pattern of either, or of all."""
        if not isinstance(layer, torch.nn.Linear) or is_listed(prefix, self.skipped):
            return None
        for name in (f"{prefix}.weight", prefix):
            if name in self.exact:
                return self.exact[name]
        for pattern, scheme in self.patterns:
            if pattern.fullmatch(f"{prefix}.weight") or pattern.fullmatch(prefix):
                return scheme
        return self.default

    def describe(self) -> str:
        """``torchao int8 weights``."""
        found = [self.default, *self.exact.values(), *(scheme for _, scheme in self.patterns)]
        return "; ".join(dict.fromkeys(s.describe() for s in found if s is not None))


# -- the configs of torchao ----------------------------------------------------------------------


def _typed(fields: Fields, name: str) -> tuple[str, Fields]:
    """An object of torchao's: its class and fields."""
    found = Fields(fields.values.get(name), f"{fields.where}: {name}")
    kind = found.text("_type")
    version = found.integer("_version", default=2)
    if version < 2 and kind.endswith("Config") and "Fqn" not in kind:
        raise UnsupportedQuantizationError(
            f"{found.where}: {kind} of version {version}, whose tensors torchao no longer has; "
            "quantize the original model with a newer torchao"
        )
    return kind, Fields(found.values.get("_data"), f"{fields.where}: {kind}")


def _word(fields: Fields, name: str, default: str) -> str:
    """The name of a dtype or of an enumeration's member."""
    value = fields.values.get(name)
    if value is None:
        return default
    return Fields(value, f"{fields.where}: {name}").text("_data").lower()


def _granularity(value: object, where: str) -> tuple[str, int]:
    """(kind, group size) of PerRow, PerTensor, PerGroup, PerAxis, PerBlock; PerRow for None."""
    if value is None:
        return "PerRow", -1
    fields = Fields(value, where)
    kind = fields.text("_type")
    data = Fields(fields.values.get("_data") or {}, where)
    if kind == "PerGroup":
        return kind, data.group_size("group_size")
    if kind == "PerBlock" and data.values.get("block_size") not in ([128, 128], [1, 128]):
        raise data.unsupported("block_size", "[128, 128] for weights, [1, 128] for activations")
    rows = {
        "PerRow": data.values.get("dim", -1) in (-1, 1),
        "PerAxis": data.values.get("axis", 0) == 0,
    }
    if not rows.get(kind, True):
        raise UnsupportedQuantizationError(f"{where}: {kind} along another dimension than rows")
    return kind, -1


def _both(fields: Fields) -> tuple[str, str]:
    """The granularity of activations and of weights."""
    value = fields.values.get("granularity")
    both = value if isinstance(value, list) else [value, value]
    if len(both) != 2:
        raise fields.wrong("granularity", "one or two")
    where = f"{fields.where}: granularity"
    return _granularity(both[0], where)[0], _granularity(both[1], where)[0]


def _scheme(kind: str, fields: Fields) -> LinearScheme:
    makers = {
        "Int8WeightOnlyConfig": _int8_weights,
        "Int8DynamicActivationInt8WeightConfig": _int8,
        "Float8WeightOnlyConfig": _float8_weights,
        "Float8DynamicActivationFloat8WeightConfig": _float8,
        "Int4WeightOnlyConfig": _int4,
        "IntxWeightOnlyConfig": _intx,
    }
    if kind not in makers:
        raise UnsupportedQuantizationError(
            f"{fields.where}: not supported; supported: {', '.join(makers)}"
        )
    return makers[kind](fields)


def _renamed(title: str, inner: LinearScheme) -> LinearScheme:
    return RenamedScheme(f"torchao {title}", inner, _NAMES)


def _signed(bits: int, group: int, zero_points: bool = False) -> LinearScheme:
    weights = IntegerWeights(bits, group, zero_points)
    return _renamed(f"int{bits} weights, {weights.describe()}", IntQuantizedScheme(weights))


def _int8_weights(fields: Fields) -> LinearScheme:
    kind, group = _granularity(fields.values.get("granularity"), f"{fields.where}: granularity")
    if kind not in ("PerRow", "PerGroup"):
        raise fields.unsupported("granularity", "PerRow, PerGroup")
    return _signed(8, fields.group_size("group_size", default=group))


def _int8(fields: Fields) -> LinearScheme:
    inputs, weights = _both(fields)
    if (inputs, weights) != ("PerRow", "PerRow"):
        raise fields.unsupported("granularity", "PerRow")
    if _word(fields, "act_mapping_type", "symmetric") != "symmetric":
        raise fields.unsupported("act_mapping_type", "SYMMETRIC")
    fields.refuse("reduce_range", "weight_only_decode", why="another rounding of activations")
    inner = Int8Scheme(per_channel=True, static=False, symmetric=True)
    return _renamed(inner.describe(), inner)


_WEIGHTS = {
    "PerRow": GroupShape.PER_CHANNEL,
    "PerTensor": GroupShape.PER_TENSOR,
    "PerBlock": GroupShape(128, 128),
}
_INPUTS = {
    "PerRow": kFp8DynamicTokenSym,
    "PerTensor": kFp8DynamicTensorSym,
    "PerBlock": kFp8Dynamic128Sym,
}


def _float8_scheme(fields: Fields, weights: str, inputs: QuantKey | None) -> LinearScheme:
    if _word(fields, "weight_dtype", "float8_e4m3fn") != "float8_e4m3fn":
        raise fields.unsupported("weight_dtype", "float8_e4m3fn")
    if weights not in _WEIGHTS:
        raise fields.unsupported("granularity", ", ".join(_WEIGHTS))
    inner = Float8Scheme("float8", _WEIGHTS[weights], inputs)
    return _renamed(inner.describe(), inner)


def _float8_weights(fields: Fields) -> LinearScheme:
    stated = fields.values.get("granularity")
    kind, _ = _granularity(stated, f"{fields.where}: granularity")
    return _float8_scheme(fields, kind, None)


def _float8(fields: Fields) -> LinearScheme:
    inputs, weights = "PerTensor", "PerTensor"  # what the class fills in
    if fields.values.get("granularity") is not None:
        inputs, weights = _both(fields)
    if _word(fields, "activation_dtype", "float8_e4m3fn") != "float8_e4m3fn":
        raise fields.unsupported("activation_dtype", "float8_e4m3fn")
    if _word(fields, "packing_format", "plain") != "plain":
        raise fields.unsupported("packing_format", "PLAIN; others are layouts of one device")
    fields.refuse("activation_value_lb", "activation_value_ub", why="bounds of activation scales")
    if inputs not in _INPUTS or (inputs == "PerBlock") != (weights == "PerBlock"):
        raise fields.unsupported("granularity", "PerRow, PerTensor, or blocks for both")
    return _float8_scheme(fields, weights, _INPUTS[inputs])


def _int4(fields: Fields) -> LinearScheme:
    packing = _word(fields, "int4_packing_format", "plain")
    if packing != "plain":
        raise UnsupportedQuantizationError(
            f"{fields.where}: int4_packing_format is {packing!r}, the layout of one device's "
            "kernel; quantize with PLAIN"
        )
    return _Int4Scheme(fields.group_size("group_size", default=128))


def _intx(fields: Fields) -> LinearScheme:
    dtype = _word(fields, "weight_dtype", "int8")
    allowed = {f"int{bits}": bits for bits in range(2, 9)}
    if dtype not in allowed:
        raise fields.unsupported("weight_dtype", "int2 to int8")
    packing = _word(fields, "intx_packing_format", "unpacked_to_int8")
    if packing != "unpacked_to_int8":
        raise UnsupportedQuantizationError(
            f"{fields.where}: intx_packing_format is {packing!r}, the layout of one device's "
            "kernel; quantize with UNPACKED_TO_INT8"
        )
    kind, group = _granularity(fields.values.get("granularity"), f"{fields.where}: granularity")
    if kind not in ("PerAxis", "PerGroup", "PerRow"):
        raise fields.unsupported("granularity", "PerAxis(0), PerGroup")
    mapping = _word(fields, "mapping_type", "symmetric")
    if mapping not in ("symmetric", "symmetric_no_clipping_err", "asymmetric"):
        raise CheckpointError(f"{fields.where}: mapping_type {mapping!r} is not known")
    return _signed(allowed[dtype], group, zero_points=mapping == "asymmetric")
