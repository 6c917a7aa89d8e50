"""The method ``mxfp4``: gpt-oss, whose experts are MXFP4 and everything else is not quantized.

A layer of experts is six tensors (E, H and I as in `qcore.layers.moe`):

========================  ========================  ============================================
gate_up_proj_blocks       uint8 [E, 2I, H/32, 16]   two e2m1 codes in a byte, the even one low
gate_up_proj_scales       uint8 [E, 2I, H/32]       e8m0: ``2**(code - 127)``
gate_up_proj_bias         float [E, 2I]
down_proj_blocks          uint8 [E, H, I/32, 16]
down_proj_scales          uint8 [E, H, I/32]
down_proj_bias            float [E, H]
========================  ========================  ============================================

Row 2i of gate_up is row i of gate, row 2i + 1 is that of up. Between the products is
``swigluoai``; the router takes the softmax of the chosen experts' logits and is left as it is.

Source: transformers 5.23, ``integrations/mxfp4.py`` (``_convert_moe_packed_tensors``: nibbles,
scales, the transposition), ``models/gpt_oss/modeling_gpt_oss.py`` (``GptOssExperts._apply_gate``,
``GptOssTopKRouter``), ``quantizers/quantizers_utils.py`` (``should_convert_module``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from qcore.errors import UnsupportedQuantizationError
from qcore.layers.moe import ExpertsLayerConfig, MoeMxfp4LayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.fields import Fields
from qcore.quantization.fused_experts import FusedExpertsScheme
from qcore.quantization.name_patterns import compile_pattern

__all__ = ["GptOssExpertsScheme", "Mxfp4Config"]

_BLOCK = 32
_BYTES = (torch.uint8,)


class GptOssExpertsScheme(FusedExpertsScheme):
    """The experts of gpt-oss."""

    activation: ClassVar[str] = "swigluoai"

    def describe(self) -> str:
        """mxfp4 experts of gpt-oss."""
        return "mxfp4 experts of gpt-oss"

    def checkpoint_tensors(self, E: int, H: int, I: int) -> Mapping[str, ParamSpec]:  # noqa: E741
        """See the module's table."""
        for name, size in (("hidden", H), ("intermediate", I)):
            if size % _BLOCK:
                raise UnsupportedQuantizationError(
                    f"the {name} size is {size}; it must be a multiple of {_BLOCK}, the inputs of "
                    "a block of MXFP4"
                )
        found: dict[str, ParamSpec] = {}
        for name, N, K in (("gate_up_proj", 2 * I, H), ("down_proj", H, I)):
            blocks, scales = (E, N, K // _BLOCK, _BLOCK // 2), (E, N, K // _BLOCK)
            found[f"{name}_blocks"] = ParamSpec((blocks,), _BYTES, about="e2m1 codes")
            found[f"{name}_scales"] = ParamSpec((scales,), _BYTES, about="e8m0 scales")
            found[f"{name}_bias"] = ParamSpec(((E, N),), FLOAT_DTYPES, about="biases")
        return found

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
        """(E, H, I) from the blocks of either product."""
        gate_up, down = shapes.get("gate_up_proj_blocks", ()), shapes.get("down_proj_blocks", ())
        if len(gate_up) == 4:
            return gate_up[0], gate_up[2] * _BLOCK, gate_up[1] // 2
        if len(down) == 4:
            return down[0], down[1], down[2] * _BLOCK
        return None

    def layer_config(
        self,
        E: int,
        H: int,
        I: int,  # noqa: E741
        act_dtype: torch.dtype,
    ) -> MoeMxfp4LayerConfig:
        """MXFP4 experts with biases."""
        return MoeMxfp4LayerConfig(E, H, I, act_dtype, self.activation, has_bias=True)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], config: ExpertsLayerConfig
    ) -> CanonicalLinear:
        """Rows of gate and up part; blocks of a row are joined. No value changes."""
        dtype = config.act_type
        return CanonicalLinear(
            config,
            {
                "w13_weight": _parted(tensors["gate_up_proj_blocks"].flatten(2)),
                "w13_scale": _parted(tensors["gate_up_proj_scales"]),
                "w13_bias": _parted(tensors["gate_up_proj_bias"].to(dtype)),
                "w2_weight": tensors["down_proj_blocks"].flatten(2),
                "w2_scale": tensors["down_proj_scales"],
                "w2_bias": tensors["down_proj_bias"].to(dtype),
            },
        )


def _parted(rows: torch.Tensor) -> torch.Tensor:
    """[E, 2I, ...], gate and up in turn, to gate and, below it, up."""
    return torch.cat((rows[:, ::2], rows[:, 1::2]), dim=1)


class Mxfp4Config(QuantizationConfig):
    """The ``quantization_config`` of ``quant_method: mxfp4``.

    Args:
        modules_to_not_convert: regular expressions that match the beginning of a module's name, up
            to a dot, or names that end it.
    """

    def __init__(self, modules_to_not_convert: Sequence[str] = ()) -> None:
        self.modules_to_not_convert = tuple(modules_to_not_convert)
        where = "quantization_config (mxfp4): modules_to_not_convert"
        self._patterns = [
            compile_pattern(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))", where)
            for entry in self.modules_to_not_convert
        ]

    @classmethod
    def get_name(cls) -> str:
        """mxfp4."""
        return "mxfp4"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Mxfp4Config:
        """See `QuantizationConfig.from_config`."""
        return cls(Fields(config, "quantization_config (mxfp4)").strings("modules_to_not_convert"))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """None: linear layers are not quantized."""
        return None

    def get_experts_scheme(self, prefix: str) -> GptOssExpertsScheme | None:
        """That of gpt-oss, for modules that are not listed."""
        listed = any(prefix.endswith(entry) for entry in self.modules_to_not_convert)
        if listed or any(pattern.match(prefix) for pattern in self._patterns):
            return None
        return GptOssExpertsScheme()

    def describe(self) -> str:
        """``mxfp4 experts of gpt-oss``."""
        return GptOssExpertsScheme().describe()
