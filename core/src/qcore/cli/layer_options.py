"""The options of ``qcore explain`` that describe a layer, made into its config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import typer

from qcore.facts import quant_key as keys
from qcore.facts.quant_key import FP8_DTYPE, GroupShape, QuantKey, ScaleDesc
from qcore.facts.scalar_type import ScalarType, scalar_types
from qcore.kernels.types import KERNEL_TYPES
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    GGUFLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.selection.nearest import nearest

__all__ = ["DESCRIBED", "LayerOptions", "read_dtype", "read_shape"]

DESCRIBED = tuple(name for name, kind in KERNEL_TYPES.items() if not kind.routed)
"""The kernel types whose layers options can describe: all but those of experts."""

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
_SHAPE = re.compile(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*")  # noqa: RUF001 - people paste the sign, too

# Which options say something about which types; `type`, `shape` and `dtype` about all.
_ABOUT = {
    "weight_type": ("mp", "gguf"),
    "group_size": ("mp", "codebook"),
    "zero_points": ("mp", "codebook"),
    "g_idx": ("mp",),
    "static": ("int8",),
    "tensor": ("int8",),
    "asymmetric": ("int8",),
    "weights": ("fp8", "fp8_block"),
    "activations": ("fp8", "fp8_block", "nvfp4", "mxfp4", "mxfp8"),
}
_NAMES = {"static": "--static/--dynamic", "tensor": "--tensor/--channel"}

_FP8_WEIGHTS = {
    "channel": keys.kFp8StaticChannelSym,
    "tensor": keys.kFp8StaticTensorSym,
    "block": keys.kFp8Static128BlockSym,
}
_FP8_ACTIVATIONS = {
    "token": keys.kFp8DynamicTokenSym,
    "tensor": keys.kFp8DynamicTensorSym,
    "static-tensor": keys.kFp8StaticTensorSym,
    "group": keys.kFp8Dynamic128Sym,
    "none": None,
}


@dataclass(frozen=True)
class LayerOptions:
    """The options as given; None for one that was not.

    Attributes:
        type: kernel type.
        shape: ``KxN``.
        dtype: of the activations.
        weight_type: of mp: ``uint4b8`` ...; of gguf: ``Q4_K`` ...
        group_size: of mp and codebook.
        zero_points: of mp; offsets of codebook.
        g_idx: of mp.
        static: of int8: static activations.
        tensor: of int8: one weight scale.
        asymmetric: of int8: activations with a zero point.
        weights: of fp8: what shares a weight scale.
        activations: of the float formats: how they are quantized.
    """

    type: str
    shape: str
    dtype: str
    weight_type: str | None = None
    group_size: int | None = None
    zero_points: bool | None = None
    g_idx: bool | None = None
    static: bool | None = None
    tensor: bool | None = None
    asymmetric: bool | None = None
    weights: str | None = None
    activations: str | None = None

    def given(self) -> list[str]:
        """The options that describe a layer and were given."""
        return [_option(name) for name in _ABOUT if getattr(self, name) is not None]

    def config(self) -> MMLinearLayerConfig:
        """The layer's config.

        Raises:
            typer.BadParameter: an option cannot be read, or says nothing about this type.
            qcore.errors.ConfigError: the layer cannot exist.
        """
        if self.type not in KERNEL_TYPES:
            known = list(KERNEL_TYPES)
            raise typer.BadParameter(
                f"no kernel type is called {self.type!r}{nearest(self.type, known)}; "
                f"there are: {', '.join(known)}",
                param_hint="--type",
            )
        if KERNEL_TYPES[self.type].routed:
            raise typer.BadParameter(
                f"{self.type!r} layers cannot be described by options; give a checkpoint that has "
                "such experts",
                param_hint="--type",
            )
        for name, types in _ABOUT.items():
            if getattr(self, name) is not None and self.type not in types:
                raise typer.BadParameter(
                    f"says nothing about {self.type!r} layers, only about {', '.join(types)}",
                    param_hint=_option(name),
                )
        K, N = read_shape(self.shape)
        dtype = read_dtype(self.dtype)
        if self.type == "mp":
            return self._mp(K, N, dtype)
        if self.type == "int8":
            return Int8ScaledMMLinearLayerConfig(
                is_static_input_scheme=bool(self.static),
                is_channelwise=not self.tensor,
                input_symmetric=not self.asymmetric,
                weight_shape=(N, K),
                input_dtype=dtype,
                out_dtype=dtype,
            )
        if self.type in ("fp8", "fp8_block"):
            return self._fp8(K, N, dtype)
        if self.type == "gguf":
            name = self.weight_type or "Q4_K"
            if name not in GGUF_BLOCK_TYPES:
                known = list(GGUF_BLOCK_TYPES)
                raise typer.BadParameter(
                    f"{name!r}{nearest(name, known)}; allowed: {', '.join(known)}",
                    param_hint="--weight-type",
                )
            return GGUFLinearLayerConfig((N, K), name, dtype, dtype)
        if self.type == "codebook":
            group = 64 if self.group_size is None else self.group_size
            return CodebookLinearLayerConfig((N, K), 4, group, bool(self.zero_points), dtype)
        return self._block_format(K, N, dtype)

    def _mp(self, K: int, N: int, dtype: torch.dtype) -> MPLinearLayerConfig:
        name = self.weight_type or ("uint4" if self.zero_points else "uint4b8")
        known = [k for k, v in vars(scalar_types).items() if isinstance(v, ScalarType)]
        if name not in known:
            raise typer.BadParameter(
                f"no type is called {name!r}{nearest(name, known)}; uint4b8 is 4 bits stored with "
                "an offset of 8 (symmetric GPTQ), uint4 has zero points (AWQ)",
                param_hint="--weight-type",
            )
        return MPLinearLayerConfig(
            full_weight_shape=(K, N),
            partition_weight_shape=(K, N),
            weight_type=scalar_types.by_name(name),
            act_type=dtype,
            group_size=128 if self.group_size is None else self.group_size,
            zero_points=bool(self.zero_points),
            has_g_idx=bool(self.g_idx),
        )

    def _fp8(self, K: int, N: int, dtype: torch.dtype) -> FP8ScaledMMLinearLayerConfig:
        by_block = self.type == "fp8_block" or self.weights == "block"
        weights = self.weights or ("block" if by_block else "channel")
        if self.type == "fp8_block" and weights != "block":
            raise typer.BadParameter(
                "fp8_block layers have scales per block; others are --type fp8",
                param_hint="--weights",
            )
        if self.activations is not None:
            activations = self.activations
        else:
            activations = "group" if by_block else "token"
        config_class = (
            Fp8BlockScaledMMLinearLayerConfig if by_block else FP8ScaledMMLinearLayerConfig
        )
        return config_class(
            weight_quant_key=_pick("--weights", weights, _FP8_WEIGHTS),
            activation_quant_key=_pick("--activations", activations, _FP8_ACTIVATIONS),
            weight_shape=(N, K),
            input_dtype=dtype,
            out_dtype=dtype,
        )

    def _block_format(self, K: int, N: int, dtype: torch.dtype) -> MMLinearLayerConfig:
        classes: dict[str, Any] = {
            "nvfp4": NvFp4LinearLayerConfig,
            "mxfp4": MxFp4LinearLayerConfig,
            "mxfp8": Mxfp8LinearLayerConfig,
        }
        allowed: dict[str, dict[str, QuantKey | None]] = {
            "nvfp4": {"nvfp4": keys.kNvfp4Dynamic, "none": None},
            "mxfp4": {
                "none": None,
                "mxfp4": keys.kMxfp4Dynamic,
                "mxfp8": keys.kMxfp8Dynamic,
                "fp8": QuantKey(FP8_DTYPE, ScaleDesc(torch.float32, False, GroupShape.PER_TENSOR)),
            },
            "mxfp8": {"mxfp8": keys.kMxfp8Dynamic, "none": None},
        }
        choices = allowed[self.type]
        activations = self.activations or next(iter(choices))
        config: MMLinearLayerConfig = classes[self.type](
            weight_shape=(N, K),
            activation_quant_key=_pick("--activations", activations, choices),
            input_dtype=dtype,
            out_dtype=dtype,
        )
        return config


def read_shape(text: str) -> tuple[int, int]:
    """(K, N) of ``KxN``.

    Raises:
        typer.BadParameter: it has another form.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not KxN, inputs by outputs, such as 4096x11008", param_hint="--shape"
        )
    return int(match[1]), int(match[2])


def read_dtype(text: str) -> torch.dtype:
    """The dtype called so.

    Raises:
        typer.BadParameter: none is.
    """
    dtype = _DTYPES.get(text.lower().removeprefix("torch."))
    if dtype is None:
        raise typer.BadParameter(
            f"{text!r}; allowed: bfloat16, float16, float32", param_hint="--dtype"
        )
    return dtype


def _pick(option: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise typer.BadParameter(
            f"{value!r}{nearest(value, list(choices))}; allowed: {', '.join(choices)}",
            param_hint=option,
        )
    return choices[value]


def _option(name: str) -> str:
    return _NAMES.get(name, "--" + name.replace("_", "-"))
