"""Which of the generated kernels a layer needs: from qcore's configs to `Scheme`."""

from __future__ import annotations

import torch
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.layers.microscaling import (
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.layers.mixed_precision import MPLinearLayerConfig

from qcore_cuda.marlin.instances import QUANT_CONFIGS, Scheme

__all__ = ["scheme_of"]

_TYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "s8",
    torch.float8_e4m3fn: "fe4m3fn",
}
_WEIGHTS = {"uint4b8": "u4b8", "int4": "u4b8", "uint8b128": "u8b128", "int8": "u8b128"}
_WITH_ZEROS = {"uint4": "u4", "uint8": "u8"}


def _family(a_type: str, capability: int) -> int:
    return 89 if a_type == "fe4m3fn" else 75 if capability < 80 else 80


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def scheme_of(
    config: MMLinearLayerConfig, capability: int, *, sorted_groups: bool = True
) -> Scheme | str:
    """The scheme of a layer on a processor of ``capability``.

    Args:
        config: the layer.
        capability: 90 for sm_90.
        sorted_groups: with activation order, whether inputs sorted by group make groups of one
            size; else each input names its group.

    Returns:
        The scheme, or why there is none.
    """
    if isinstance(config, MPLinearLayerConfig):
        found = _mixed(config, capability, sorted_groups)
    elif config.kernel_type == FP8ScaledMMLinearLayerConfig.kernel_type:
        assert isinstance(config, FP8ScaledMMLinearLayerConfig)  # not with blocks, a child of it
        found = _fp8(config, capability)
    else:
        found = _block_format(config, capability)
    if isinstance(found, str):
        return found
    a_type, c_type = found.a_type, found.c_type
    if a_type == "fe4m3fn" and capability < 89:
        return f"float8_e4m3fn activations need sm_89; this device is sm_{capability}"
    if capability < 80 and "bfloat16" in (a_type, c_type):
        return f"bfloat16 needs sm_80; this device is sm_{capability}"
    if capability < 75:
        return f"written for sm_75 and later; this device is sm_{capability}"
    return found


def _known(
    capability: int,
    a_type: str,
    b_type: str,
    c_type: str,
    group_blocks: int,
    s_type: str | None = None,
) -> Scheme | str:
    """The scheme, if there is a config for it."""
    for config in QUANT_CONFIGS:
        if (
            config["b_type"] == b_type
            and config["s_type"] == s_type
            and not config["is_zp_float"]
            and a_type in config["a_types"]
            and c_type in (config["c_types"] or (a_type,))
        ):
            if group_blocks in config["group_blocks"]:
                family = _family(a_type, capability)
                return Scheme(config["name"], family, a_type, b_type, c_type, group_blocks, s_type)
            sizes = ", ".join(str(16 * g if g > 0 else -1) for g in config["group_blocks"] if g)
            return f"groups of {16 * group_blocks} are not implemented; {sizes} are"
    return f"{b_type} weights with {a_type} activations and {c_type} results are not implemented"


def _mixed(config: MPLinearLayerConfig, capability: int, sorted_groups: bool) -> Scheme | str:
    types = _WITH_ZEROS if config.zero_points else _WEIGHTS
    b_type = types.get(str(config.weight_type))
    if b_type is None:
        with_zeros = " with zero points" if config.zero_points else ""
        return f"{config.weight_type}{with_zeros} is not implemented; {', '.join(types)} are"
    a_type = _TYPES.get(config.act_type)
    c_type = _TYPES.get(config.out_type or config.act_type)
    narrow = a_type in ("s8", "fe4m3fn")
    if a_type is None or c_type not in ("float16", "bfloat16"):
        return f"{_name(config.act_type)} activations and {c_type} results are not implemented"
    if not narrow and c_type != a_type:
        return f"results are {c_type}, activations {a_type}; they must be the same"
    size = config.group_size
    if config.has_g_idx:
        if narrow:
            return "g_idx (activation order) with 8-bit activations is not implemented"
        if not sorted_groups:
            return _known(capability, a_type, b_type, c_type, 0)
    if config.num_groups == 1:
        return _known(capability, a_type, b_type, c_type, -1)
    if size % 16:
        return f"groups of {size} are not implemented; multiples of 16 are"
    return _known(capability, a_type, b_type, c_type, size // 16)


def _fp8(config: FP8ScaledMMLinearLayerConfig, capability: int) -> Scheme | str:
    if config.weight_quant_key.dtype != torch.float8_e4m3fn:
        return f"weights of {_name(config.weight_quant_key.dtype)}; only float8_e4m3fn"
    c_type = _TYPES.get(config.out_dtype)
    if c_type not in ("float16", "bfloat16"):
        return f"results of {_name(config.out_dtype)}; float16 and bfloat16 are implemented"
    return _known(capability, c_type, "fe4m3fn", c_type, -1)


_BLOCK_FORMATS: dict[type, tuple[str, str, int]] = {
    NvFp4LinearLayerConfig: ("fe2m1f", "fe4m3fn", 1),
    MxFp4LinearLayerConfig: ("fe2m1f", "fe8m0fnu", 2),
    Mxfp8LinearLayerConfig: ("fe4m3fn", "fe8m0fnu", 2),
}


def _block_format(config: MMLinearLayerConfig, capability: int) -> Scheme | str:
    known = _BLOCK_FORMATS.get(type(config))
    if known is None:
        return f"layers of type {config.kernel_type} are not implemented"
    b_type, s_type, group_blocks = known
    dtype = getattr(config, "out_dtype", None) or config.activation_dtype
    name = _TYPES.get(dtype) if dtype is not None else None
    if name not in ("float16", "bfloat16"):
        return f"inputs of {_name(dtype)}; float16 and bfloat16 are implemented"
    if config.activation_dtype not in (None, dtype):
        return f"inputs of {_name(config.activation_dtype)} with results of {_name(dtype)}"
    if config.in_features is None:
        return "the layer's shape is not known"
    return _known(capability, name, b_type, name, group_blocks, s_type)
