"""Which e4m3 the GPU multiplies, and weights and scales made for it."""

from __future__ import annotations

import torch
from qcore.facts.current_platform import current_platform
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.numerics.fnuz import e4m3fn_to_fnuz

from qcore_rocm import launching

__all__ = ["device_dtype", "dtype_refusal", "for_device"]

_FN, _FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def device_dtype() -> torch.dtype:
    """e4m3fnuz on gfx942, e4m3fn on all others."""
    if launching.stands_in():
        return _FNUZ if launching.arch_of(torch.device("cpu")) == "gfx942" else _FN
    return _FNUZ if current_platform.is_fp8_fnuz() else _FN


def dtype_refusal(config: FP8ScaledMMLinearLayerConfig) -> str | None:
    """Why the layer's 8-bit floats cannot be multiplied on the target being weighed, if so."""
    key = config.activation_quant_key
    if key is None:
        return "weight-only layers (activations as they are) are not implemented"
    dtype = config.weight_quant_key.dtype
    if key.dtype != dtype:
        return f"weights of {dtype} with activations of {key.dtype}"
    if dtype == _FNUZ and device_dtype() != _FNUZ:
        return "float8_e4m3fnuz weights; the device multiplies float8_e4m3fn"
    return None


def for_device(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A weight as the device has it, and what its scale is to be multiplied with: 1 or 2."""
    if weight.dtype == device_dtype():
        return weight, 1.0
    return e4m3fn_to_fnuz(weight), 2.0
