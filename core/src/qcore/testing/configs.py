"""`conformance_configs`: layers that between them have every feature that a config can express."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from qcore.errors import ConfigError
from qcore.facts.quant_key import (
    GroupShape,
    QuantKey,
    ScaleDesc,
    kFp8Dynamic64Sym,
    kFp8Dynamic128Sym,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
    kFp8StaticTokenSym,
    kMxfp4Dynamic,
    kMxfp8Dynamic,
    kNvfp4Dynamic,
    kNvfp4DynamicToken,
)
from qcore.facts.scalar_type import ScalarType, scalar_types
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
from qcore.layers.mixed_precision import MP_WEIGHT_TYPES
from qcore.layers.moe import EXPERT_ACTIVATIONS, MoeMxfp4LayerConfig, MoeWNA16LayerConfig
from qcore.testing.covering import covering_array

__all__ = ["conformance_configs", "label", "spread"]

_F32, _F16, _BF16 = torch.float32, torch.float16, torch.bfloat16

# (input, output) dtypes. None as output: that of the input.
_DTYPES = ((_BF16, None), (_F16, None), (_F32, None), (_BF16, _F32), (_F32, _BF16))

_COMMON_DTYPES = _DTYPES[:3]

# (N, K). The first are what real layers look like, in small; the others have a remainder by
# whatever a kernel may tile with.
_ALIGNED = ((128, 256), (256, 128), (384, 512), (64, 128))
_RAGGED = ((72, 200), (19, 77), (130, 96), (1, 1))


def conformance_configs(
    kernel_type: str, *, thorough: bool = False
) -> tuple[MMLinearLayerConfig, ...]:
    """Small layers of a kernel type, in which any two features occur together at least once.

    Any three of the features of common layers do (aligned shapes, the usual types and groups).

    The features are those of the config class (weight types, group sizes, scales, zero points,
    activation order, activation quantization, dtypes), aligned and ragged shapes, a rank's part of
    a layer, and configs that leave out what they may leave out. Most kernels refuse many of them.

    Args:
        kernel_type: a key of `qcore.kernels.KERNEL_TYPES`.
        thorough: any three features together, any four of common layers; several times as many.

    Raises:
        ConfigError: no kernel type has this name.
    """
    if kernel_type not in _GRIDS:
        raise ConfigError(
            f"no kernel type is called {kernel_type!r}; there are {', '.join(_GRIDS)}"
        )
    return _conformance_configs(kernel_type, 3 if thorough else 2)


@lru_cache(maxsize=32)
def _conformance_configs(kernel_type: str, strength: int) -> tuple[MMLinearLayerConfig, ...]:
    return tuple(dict.fromkeys(_GRIDS[kernel_type](strength)))


def spread(configs: Sequence[MMLinearLayerConfig], count: int) -> list[MMLinearLayerConfig]:
    """At most ``count`` of ``configs``, evenly spread; for checks that cost much."""
    if len(configs) <= count:
        return list(configs)
    return [configs[index * len(configs) // count] for index in range(count)]


def _rows(
    axes: Mapping[str, Sequence[Any]], common: Mapping[str, Sequence[Any]], strength: int
) -> list[dict[str, Any]]:
    """Rows that cover ``axes``, and more densely what ``common`` restricts them to.

    A kernel for common layers alone refuses nearly all of the first; the second are for it.
    """
    return covering_array(axes, strength) + covering_array({**axes, **common}, strength + 1)


def _mp(strength: int) -> list[MMLinearLayerConfig]:
    kinds = [(kind, False) for kind in MP_WEIGHT_TYPES]
    kinds += [(ScalarType.uint(bits), True) for bits in (2, 3, 4, 5, 6, 7, 8)]
    rows = _rows(
        {
            "kind": kinds,
            "shape": (*_ALIGNED, *_RAGGED),
            "group": (128, 64, 32, 16, -1, 7, 1024),
            "dtypes": (*_DTYPES, (torch.float8_e4m3fn, _BF16), (torch.int8, _BF16)),
            "g_idx": (False, True),
            "whole": (True, False),
        },
        {
            "kind": (
                (scalar_types.uint4b8, False),
                (scalar_types.uint4, True),
                (scalar_types.uint8b128, False),
            ),
            "shape": _ALIGNED,
            "group": (128, 64, 32, -1),
            "dtypes": _COMMON_DTYPES,
            "g_idx": (False,),
            "whole": (True,),
        },
        strength,
    )
    configs: list[MMLinearLayerConfig] = []
    for row in rows:
        (N, K), (kind, zero_points) = row["shape"], row["kind"]
        act_type, out_type = row["dtypes"]
        configs.append(
            MPLinearLayerConfig(
                full_weight_shape=(K if row["whole"] else 2 * K, N),
                partition_weight_shape=(K, N),
                weight_type=kind,
                act_type=act_type,
                group_size=row["group"],
                zero_points=zero_points,
                has_g_idx=row["g_idx"],
                out_type=out_type,
            )
        )
    return configs


def _int8(strength: int) -> list[MMLinearLayerConfig]:
    rows = _rows(
        {
            "static": (False, True),
            "channel": (True, False),
            "symmetric": (True, False),
            "fused": (False, True),
            "dtypes": _DTYPES,
            "shape": (*_ALIGNED, *_RAGGED),
        },
        {"fused": (False,), "dtypes": _COMMON_DTYPES, "shape": _ALIGNED},
        strength,
    )
    made = [
        Int8ScaledMMLinearLayerConfig(
            is_static_input_scheme=row["static"],
            is_channelwise=row["channel"],
            input_symmetric=row["symmetric"],
            is_fused_module=row["fused"],
            weight_shape=row["shape"],
            input_dtype=row["dtypes"][0],
            out_dtype=row["dtypes"][1],
        )
        for row in rows
    ]
    made += [
        Int8ScaledMMLinearLayerConfig(static, True, True) for static in (False, True)
    ]  # neither shape nor dtypes
    return list(made)


def _with_dtype(key: QuantKey, dtype: torch.dtype) -> QuantKey:
    return QuantKey(dtype, key.scale, key.scale2, key.symmetric)


def _fp8(strength: int) -> list[MMLinearLayerConfig]:
    fnuz = torch.float8_e4m3fnuz
    weights = (kFp8StaticChannelSym, kFp8StaticTensorSym, kFp8StaticTokenSym)
    inputs = (kFp8DynamicTokenSym, None, kFp8StaticTensorSym, kFp8DynamicTensorSym)
    made = _fp8_layers(FP8ScaledMMLinearLayerConfig, weights, inputs, strength)
    for key in (kFp8DynamicTokenSym, kFp8StaticTensorSym, None):
        made.append(
            FP8ScaledMMLinearLayerConfig(
                _with_dtype(kFp8StaticChannelSym, fnuz),
                _with_dtype(key, fnuz) if key else None,
                (128, 256),
                _BF16,
                _BF16,
            )
        )
    return made


def _fp8_block(strength: int) -> list[MMLinearLayerConfig]:
    blocks = ((128, 128), (64, 64), (1, 128), (128, 64), (24, 40))
    weights = tuple(
        QuantKey(torch.float8_e4m3fn, ScaleDesc(torch.float32, True, GroupShape(*block)))
        for block in blocks
    )
    inputs = (kFp8Dynamic128Sym, None, kFp8Dynamic64Sym, kFp8StaticTensorSym)
    return _fp8_layers(Fp8BlockScaledMMLinearLayerConfig, weights, inputs, strength)


def _fp8_layers(
    config_class: type[FP8ScaledMMLinearLayerConfig],
    weights: Sequence[QuantKey],
    inputs: Sequence[QuantKey | None],
    strength: int,
) -> list[MMLinearLayerConfig]:
    rows = _rows(
        {
            "weights": weights,
            "inputs": inputs,
            "shape": (*_ALIGNED, *_RAGGED),
            "dtypes": _DTYPES,
        },
        {"weights": weights[:2], "shape": _ALIGNED, "dtypes": _COMMON_DTYPES[:2]},
        strength,
    )
    return [
        config_class(
            row["weights"],
            row["inputs"],
            row["shape"],
            row["dtypes"][0],
            row["dtypes"][1] or row["dtypes"][0],
        )
        for row in rows
    ]


def _block_format(
    config_class: Callable[..., MMLinearLayerConfig], inputs: Sequence[QuantKey | None], block: int
) -> Callable[[int], list[MMLinearLayerConfig]]:
    ragged = ((72, 6 * block), (19, 3 * block), (1, block))

    def grid(strength: int) -> list[MMLinearLayerConfig]:
        rows = _rows(
            {"inputs": inputs, "shape": (*_ALIGNED, *ragged), "dtypes": (*_DTYPES, (None, None))},
            {"shape": _ALIGNED, "dtypes": _COMMON_DTYPES[:2]},
            strength,
        )
        made = [
            config_class(row["shape"], row["inputs"], row["dtypes"][0], row["dtypes"][1])
            for row in rows
        ]
        return [*made, *(config_class(None, key) for key in inputs)]

    return grid


# (N, K); the ragged ones are (N, blocks).
_BLOCK_ALIGNED = ((128, 256), (256, 512), (64, 1024))
_BLOCK_RAGGED = ((72, 3), (19, 5), (1, 1))


def _gguf(strength: int) -> list[MMLinearLayerConfig]:
    shapes = [(shape, False) for shape in _BLOCK_ALIGNED] + [(s, True) for s in _BLOCK_RAGGED]
    rows = _rows(
        {
            "qtype": tuple(GGUF_BLOCK_TYPES),
            "shape": shapes,
            "dtypes": (*_DTYPES, (None, None)),
        },
        {"shape": shapes[:3], "dtypes": _COMMON_DTYPES[:2]},
        strength,
    )
    configs: list[MMLinearLayerConfig] = []
    for row in rows:
        (N, K), ragged = row["shape"]
        if ragged:
            K *= GGUF_BLOCK_TYPES[row["qtype"]].block_size
        configs.append(GGUFLinearLayerConfig((N, K), row["qtype"], *row["dtypes"]))
    return configs


def _codebook(strength: int) -> list[MMLinearLayerConfig]:
    rows = _rows(
        {
            "bits": (4, 8, 3, 2, 1, 5, 6, 7),
            "shape": (*_ALIGNED, *_RAGGED),
            "group": (64, 128, 32, -1, 7, 1024),
            "offset": (False, True),
            "dtypes": (*_DTYPES, (None, None)),
        },
        {
            "bits": (4,),
            "shape": _ALIGNED,
            "group": (64, 128, 32),
            "dtypes": _COMMON_DTYPES,
        },
        strength,
    )
    return [
        CodebookLinearLayerConfig(
            row["shape"], row["bits"], row["group"], row["offset"], *row["dtypes"]
        )
        for row in rows
    ]


_GRIDS: dict[str, Callable[[int], list[MMLinearLayerConfig]]] = {
    "mp": _mp,
    "int8": _int8,
    "fp8": _fp8,
    "fp8_block": _fp8_block,
    "nvfp4": _block_format(
        NvFp4LinearLayerConfig,
        (kNvfp4Dynamic, None, kNvfp4DynamicToken, kFp8DynamicTokenSym),
        16,
    ),
    "mxfp4": _block_format(MxFp4LinearLayerConfig, (None, kMxfp4Dynamic, kMxfp8Dynamic), 32),
    "mxfp8": _block_format(Mxfp8LinearLayerConfig, (kMxfp8Dynamic, None), 32),
    "gguf": _gguf,
    "codebook": _codebook,
}


def _moe(strength: int) -> list[MMLinearLayerConfig]:
    kinds = [(ScalarType.uint(bits, 1 << (bits - 1)), False) for bits in (2, 3, 4, 5, 6, 7, 8)]
    kinds += [(ScalarType.uint(bits), True) for bits in (2, 3, 4, 5, 6, 7, 8)]
    rows = _rows(
        {
            "kind": kinds,
            "experts": (4, 1, 7),
            "sizes": ((64, 128), (128, 64), (40, 72), (19, 33)),
            "group": (32, 128, 64, -1, 7),
            "dtype": (_BF16, _F16, _F32),
            "g_idx": (False, True),
            "activation": EXPERT_ACTIVATIONS,
            "bias": (False, True),
        },
        {
            "kind": (
                (scalar_types.uint4b8, False),
                (scalar_types.uint4, True),
                (scalar_types.uint8b128, False),
            ),
            "experts": (4,),
            "sizes": ((64, 128), (128, 64)),
            "group": (32, 64, -1),
            "g_idx": (False,),
            "activation": ("silu",),
            "bias": (False,),
        },
        strength,
    )
    return [
        MoeWNA16LayerConfig(
            num_experts=row["experts"],
            hidden_size=row["sizes"][0],
            intermediate_size=row["sizes"][1],
            weight_type=row["kind"][0],
            act_type=row["dtype"],
            group_size=row["group"],
            zero_points=row["kind"][1],
            has_g_idx=row["g_idx"],
            activation=row["activation"],
            has_bias=row["bias"],
        )
        for row in rows
    ]


def _moe_mxfp4(strength: int) -> list[MMLinearLayerConfig]:
    rows = _rows(
        {
            "experts": (4, 1, 7),
            "sizes": ((64, 128), (128, 64), (32, 96), (160, 32)),
            "dtype": (_BF16, _F16, _F32),
            "activation": EXPERT_ACTIVATIONS,
            "bias": (False, True),
        },
        {
            "experts": (4,),
            "sizes": ((64, 128), (128, 64)),
            "activation": ("swigluoai",),
            "bias": (True,),
        },
        strength + 1,  # few features, so that any three are together
    )
    return [
        MoeMxfp4LayerConfig(
            num_experts=row["experts"],
            hidden_size=row["sizes"][0],
            intermediate_size=row["sizes"][1],
            act_type=row["dtype"],
            activation=row["activation"],
            has_bias=row["bias"],
        )
        for row in rows
    ]


_GRIDS["moe_wna16"] = _moe
_GRIDS["moe_mxfp4"] = _moe_mxfp4


def label(config: MMLinearLayerConfig) -> str:
    """A config in a few words, with its shape; readable as the id of a test."""
    K, N = config.in_features, config.out_features
    shape = f" K={K} N={N}" if K is not None else " without shape"
    dtype = getattr(config, "out_dtype", None) or getattr(config, "out_type", None)
    out = f" to {str(dtype).removeprefix('torch.')}" if dtype is not None else ""
    marks = ""
    if isinstance(config, MPLinearLayerConfig):
        whole = config.partition_weight_shape == config.full_weight_shape
        marks = "" if whole else " part of a layer"
    elif getattr(config, "is_fused_module", False):
        marks = " fused"
    elif isinstance(config, FP8ScaledMMLinearLayerConfig):
        fnuz = config.weight_quant_key.dtype == torch.float8_e4m3fnuz
        marks = " e4m3fnuz" if fnuz else ""
    return f"{config.describe()}{out}{shape}{marks}"
