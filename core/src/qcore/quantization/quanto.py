"""optimum-quanto's folders: plain tensors, and ``quanto_qmap.json`` that names the layers.

For a layer of K inputs and N outputs, with G groups in a row, whose size is that of the rows:

====================  =======================  ===================================================
qint8, qfloat8
weight._data          int8, e4m3 [N, K]        ``w = code * scale``
weight._scale         float [N, 1]
qint4, qint2
weight._data._data    uint8 [N*G/2, K/G]       the first half of the groups in the low bits; with
                                               two bits, the first quarter in the lowest
weight._scale         float [N*G, 1]           ``w = code * scale - shift``
weight._shift         float, int8 [N*G, 1]     ``w = (code - shift) * scale`` if it is an integer
====================  =======================  ===================================================

``input_scale`` and ``output_scale`` are there too, and say nothing while activations are floats.

Source: ``QuantizedTransformersModel`` and the tensors' ``save_to_state_dict`` of optimum-quanto
0.2.7. transformers' own ``quant_method: quanto`` quantizes while it loads and refuses to save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.facts.quant_key import GroupShape
from qcore.layers.codebook import CodebookLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.codebook import BlockCodes
from qcore.quantization.compressed_schemes import IntQuantizedScheme
from qcore.quantization.fields import Fields
from qcore.quantization.float8 import Float8Scheme
from qcore.quantization.integer import IntegerWeights
from qcore.quantization.renamed import RenamedScheme

__all__ = ["QuantoConfig"]

_DATA, _SCALE, _SHIFT = "weight._data._data", "weight._scale", "weight._shift"
_UNUSED = {
    name: ParamSpec(((), (1,)), FLOAT_DTYPES, optional=True, about="of activations")
    for name in ("input_scale", "output_scale")
}
_NAMES = {"weight": "weight._data", "weight_scale": _SCALE}


@dataclass(frozen=True)
class _PackedScheme(LinearScheme):
    """qint4 and qint2.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; -1 for those of a row.
    """

    bits: int
    group_size: int = -1

    @property
    def _codes(self) -> BlockCodes:
        return BlockCodes(self.bits, self.group_size, has_offset=True)

    def describe(self) -> str:
        """``quanto qint4``."""
        return f"quanto qint{self.bits}"

    def refined(self, shapes: Mapping[str, tuple[int, ...]]) -> LinearScheme:
        """Settle the group's size."""
        shape = shapes.get(_DATA, ())
        return replace(self, group_size=shape[1]) if len(shape) == 2 and shape[1] else self

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        size = K if self.group_size == -1 else self.group_size
        if K % size:
            raise UnsupportedQuantizationError(f"K={K} is no multiple of the group of {size}")
        groups = self._codes.num_blocks(K, N)
        rows = -(-groups * self.bits // 8)
        return {
            _DATA: ParamSpec(((rows, size),), (torch.uint8,), about="codes"),
            _SCALE: ParamSpec(((groups, 1),), FLOAT_DTYPES, about="scales"),
            _SHIFT: ParamSpec(
                ((groups, 1),), (*FLOAT_DTYPES, torch.int8, torch.uint8), about="shifts"
            ),
            **_UNUSED,
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """None: rows are groups, and how many make a row is not stored."""
        return None

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> CodebookLinearLayerConfig:
        """A "codebook" layer."""
        return self._codes.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Unpack the codes; a shift becomes an offset."""
        packed, scale, shift = tensors[_DATA], tensors[_SCALE], tensors[_SHIFT]
        offset = -shift.to(torch.float32)
        if not shift.is_floating_point():
            offset = offset * scale.to(torch.float32)
        top = (1 << self.bits) - 1
        codes = torch.cat([(packed >> by) & top for by in range(0, 8, self.bits)])
        return self._codes.canonical(
            K,
            N,
            act_dtype,
            codes=codes,
            codebook=torch.arange(top + 1, device=packed.device),
            scale=scale,
            offset=offset,
        )


class QuantoConfig(QuantizationConfig):
    """``quanto_qmap.json``.

    Args:
        layers: the scheme of each quantized layer, by name.
    """

    names_layers: ClassVar[bool] = True

    def __init__(self, layers: Mapping[str, LinearScheme]) -> None:
        self.layers = dict(layers)

    @classmethod
    def get_name(cls) -> str:
        """quanto."""
        return "quanto"

    @classmethod
    def get_config_filenames(cls) -> tuple[str, ...]:
        """quanto_qmap.json."""
        return ("quanto_qmap.json",)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None
    ) -> str | None:
        """Claim a map of layers to what their weights and activations are."""
        values = list(hf_quant_cfg.values())
        alike = all(isinstance(v, Mapping) and {"weights", "activations"} == set(v) for v in values)
        return "quanto" if values and alike else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantoConfig:
        """See `QuantizationConfig.from_config`."""
        if "quant_method" in config:
            raise UnsupportedQuantizationError(
                "quantization_config (quanto): transformers quantizes so while it loads, and does "
                "not save it; save the model with optimum-quanto's QuantizedModelForCausalLM, "
                "which writes quanto_qmap.json"
            )
        layers = {}
        for name, value in config.items():
            scheme = _scheme(Fields(value, f"quanto_qmap.json: {name}"))
            if scheme is not None:
                layers[name] = scheme
        return cls(layers)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """What the map says."""
        return self.layers.get(prefix) if isinstance(layer, torch.nn.Linear) else None

    def describe(self) -> str:
        """``quanto qint8``."""
        return "; ".join(dict.fromkeys(scheme.describe() for scheme in self.layers.values()))


def _scheme(fields: Fields) -> LinearScheme | None:
    if fields.text("activations", default="none") != "none":
        raise fields.unsupported("activations", "none; calibrated activations are not applied here")
    kind = fields.text("weights")
    if kind == "none":
        return None
    if kind in ("qint4", "qint2"):
        return _PackedScheme(int(kind[4:]))
    if kind == "qint8":
        weights = IntegerWeights(8, -1, zero_points=False)
        return RenamedScheme("quanto qint8", IntQuantizedScheme(weights), _NAMES, _UNUSED)
    if kind in ("qfloat8", "qfloat8_e4m3fn"):
        inner = Float8Scheme("quanto qfloat8", GroupShape.PER_CHANNEL, None)
        return RenamedScheme("quanto qfloat8", inner, _NAMES, _UNUSED)
    raise fields.unsupported("weights", "qint8, qint4, qint2, qfloat8_e4m3fn")
