"""AWQ in its GEMM layout, as AutoAWQ, llm-awq's successors and auto-round write it.

For a layer of K inputs and N outputs, eight codes of 4 bits in an int32:

========  ==================  ===================================================================
qweight   int32 [K, N / 8]    nibble i of word j is output ``8 * j + (0, 2, 4, 6, 1, 3, 5, 7)[i]``
qzeros    int32 [G, N / 8]    zero points, in the same order
scales    float [G, N]
========  ==================  ===================================================================

``w[n, k] = (code - zero) * scale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.fields import Fields
from qcore.quantization.integer import IntegerWeights
from qcore.quantization.layer_lists import LayerList, is_listed

__all__ = ["AWQConfig", "AWQScheme"]

_PACK = 8
_OUTPUT_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AWQScheme(LinearScheme):
    """The parameters of every quantized layer.

    Attributes:
        group_size: inputs that share a scale; -1 for all.
        zero_point: whether there are zero points; else the zero is 8.
    """

    group_size: int
    zero_point: bool

    @property
    def _weights(self) -> IntegerWeights:
        return IntegerWeights(4, self.group_size, self.zero_point)

    def describe(self) -> str:
        """``AWQ 4 bit g128 asymmetric``."""
        return f"AWQ {self._weights.describe()}"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """See the module's table."""
        if N % _PACK:
            raise UnsupportedQuantizationError(
                f"AWQ packs {_PACK} codes to a word along N; N={N} is no multiple of {_PACK}"
            )
        G = self._weights.num_groups(K)
        return {
            "qweight": ParamSpec(((K, N // _PACK),), (torch.int32,), about="codes"),
            "qzeros": ParamSpec(
                ((G, N // _PACK),),
                (torch.int32,),
                optional=not self.zero_point,
                about="zero points",
            ),
            "scales": ParamSpec(((G, N),), FLOAT_DTYPES, about="scales"),
        }

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``qweight``."""
        shape = shapes.get("qweight", ())
        return (shape[0], shape[1] * _PACK) if len(shape) == 2 else None

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MPLinearLayerConfig:
        """An "mp" layer."""
        return self._weights.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Put the outputs in order and pack along K. See `LinearScheme.canonicalize`."""
        zeros = tensors.get("qzeros")
        return self._weights.canonical(
            K,
            N,
            act_dtype,
            packed=_packed_along_inputs(tensors["qweight"]).t(),
            scale=tensors["scales"].t(),
            zeros=None if zeros is None else _outputs_in_order(zeros).t(),
            g_idx=None,
        )


def _packed_along_inputs(words: torch.Tensor) -> torch.Tensor:
    """int32 [K, N / 8], a word for eight outputs, to int32 [ceil(K / 8), N], one for eight inputs.

    Eight words of eight nibbles are transposed as a matrix, by exchanging halves, quarters and
    eighths: a third of the operations that taking each code out would need.
    """
    K, columns = words.shape
    words = torch.nn.functional.pad(words, (0, 0, 0, -K % _PACK)).view(-1, _PACK, columns)
    rows = [words[:, i].clone() for i in range(_PACK)]
    for distance, low in ((4, 0x0000FFFF), (2, 0x00FF00FF), (1, 0x0F0F0F0F)):
        for i in range(_PACK):
            if i & distance == 0:
                one, other = rows[i], rows[i + distance]
                swapped = (one >> (4 * distance)).bitwise_xor_(other).bitwise_and_(low)
                other ^= swapped
                one ^= swapped << (4 * distance)
    out = torch.empty((words.shape[0], columns, _PACK), dtype=torch.int32, device=words.device)
    for nibble, output in enumerate(_OUTPUT_OF_NIBBLE):
        out[..., output] = rows[nibble]
    return out.flatten(-2)


def _outputs_in_order(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, N / 8] to uint8 [rows, N]."""
    codes = torch.empty((*words.shape, _PACK), dtype=torch.uint8, device=words.device)
    for nibble, output in enumerate(_OUTPUT_OF_NIBBLE):
        codes[..., output] = (words >> (4 * nibble)) & 0xF
    return codes.flatten(-2)


class AWQConfig(QuantizationConfig):
    """AWQ's ``quantization_config``.

    Args:
        scheme: of the quantized layers.
        modules_to_not_convert: parts of the names of layers that are not quantized.
    """

    def __init__(self, scheme: AWQScheme, modules_to_not_convert: Sequence[str] = ()) -> None:
        self.scheme = scheme
        self.modules_to_not_convert = LayerList(modules_to_not_convert)

    @classmethod
    def get_name(cls) -> str:
        """awq."""
        return "awq"

    @classmethod
    def get_config_filenames(cls) -> Sequence[str]:
        """AutoAWQ's file and the one that others use."""
        return ("quant_config.json", "quantize_config.json")

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None
    ) -> str | None:
        """Claim AutoAWQ's first files, which name no method."""
        unnamed = hf_quant_cfg.get("quant_method") is None
        return "awq" if unnamed and {"w_bit", "zero_point"} <= set(hf_quant_cfg) else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AWQConfig:
        """See `QuantizationConfig.from_config`."""
        fields = Fields(config, "quantization_config (awq)")
        fields.text("version", allowed=("gemm",), default="gemm")
        fields.integer("bits", "w_bit", allowed=(4,))
        scheme = AWQScheme(
            group_size=fields.group_size("group_size", "q_group_size"),
            zero_point=fields.boolean("zero_point", default=True),
        )
        return cls(scheme, fields.strings("modules_to_not_convert"))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> AWQScheme | None:
        """Every linear layer but those whose name contains a listed part, whole words only.

        AutoAWQ takes any piece of a name; what the list means beyond whole words, the checkpoint's
        tensors say (`QuantizationConfig.names_layers`).
        """
        if not isinstance(layer, torch.nn.Linear):
            return None
        return None if is_listed(prefix, self.modules_to_not_convert) else self.scheme

    def describe(self) -> str:
        """``AWQ 4 bit g128 asymmetric``."""
        return self.scheme.describe()
