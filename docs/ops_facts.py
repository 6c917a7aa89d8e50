"""`Op`: what is to be said of an op of vLLM, and the layers that show which kernels do its work.

Signatures and layouts are facts of vLLM 0.33.0 (csrc/torch_bindings.cpp, vllm/_custom_ops.py and
the kernels behind them); they differ between its versions. Where qcore does the work of an op is
given by name here and looked up in the sources when the page is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bilingual import Text, both
from reach import Scheme


@dataclass(frozen=True)
class Op:
    """One op.

    Attributes:
        name: in vLLM.
        role: what it is for.
        schema: as vLLM registers it.
        formula: what it computes.
        contract: shapes, dtypes, layouts and limits.
        path: qcore's objects that lead to this work, ``module:Object``, in order.
        called: names of functions and classes of qcore whose call sites are listed.
        note: how qcore does it.
        layers: layers whose kernels do this work.
        alike: ops of qcore's own that do the same for another layout.
    """

    name: str
    role: Text
    schema: str
    formula: str
    contract: tuple[Text, ...]
    path: tuple[str, ...]
    called: tuple[str, ...]
    note: Text
    layers: tuple[Scheme, ...]
    alike: tuple[str, ...] = ()


def integers(kind: str, group: int = 128, **more: Any) -> Scheme:
    """An "mp" layer with this weight type."""
    stated = {"group_size": group, "zero_points": False, "has_g_idx": False, **more}
    name = {"class": "ScalarType", "name": kind}
    return {"class": "MPLinearLayerConfig", "weight_type": name, **stated}


def quant_key(
    row: int, col: int, static: bool, scale: str = "float32", dtype: Any = None
) -> Scheme:
    """A `QuantKey`, by default of e4m3."""
    group = {"class": "GroupShape", "row": row, "col": col}
    desc = {"class": "ScaleDesc", "dtype": f"torch.{scale}", "static": static, "group_shape": group}
    dtype = dtype or "torch.float8_e4m3fn"
    return {"class": "QuantKey", "dtype": dtype, "scale": desc, "scale2": None, "symmetric": True}


def int8(static: bool, symmetric: bool) -> Scheme:
    """An "int8" layer with one weight scale a channel."""
    stated = {"is_static_input_scheme": static, "is_channelwise": True}
    stated |= {"input_symmetric": symmetric, "is_fused_module": False}
    return {"class": "Int8ScaledMMLinearLayerConfig", **stated}


def fp8(weight: Scheme, inputs: Scheme | None) -> Scheme:
    """An "fp8" or "fp8_block" layer."""
    keys = {"weight_quant_key": weight, "activation_quant_key": inputs}
    block = weight["scale"]["group_shape"]["row"] > 1
    return {"class": f"F{'p8Block' if block else 'P8'}ScaledMMLinearLayerConfig", **keys}


CHANNEL, TOKEN = quant_key(-1, 1, True), quant_key(1, -1, False)
BLOCK, GROUP = quant_key(128, 128, True), quant_key(1, 128, False)
E2M1 = {"class": "ScalarType", "name": "float4_e2m1f"}
NVFP4_INPUT = quant_key(1, 16, False, "float8_e4m3fn", E2M1)
NVFP4_INPUT = {**NVFP4_INPUT, "scale2": quant_key(-1, -1, True)["scale"]}

W4 = integers("uint4b8")
W4_ZERO = integers("uint4", zero_points=True)
FP8 = fp8(CHANNEL, TOKEN)
FP8_BLOCK = fp8(BLOCK, GROUP)
NVFP4: Scheme = {"class": "NvFp4LinearLayerConfig", "activation_quant_key": NVFP4_INPUT}

MP = "qcore.layers:MPLinearLayerConfig"
MP_RUN = "qcore.kernels:MPLinearKernel.apply_weights"
INTEGER_CONFIG = "qcore.quantization.integer:IntegerWeights.layer_config"

PLATFORMS = {"cpu": both("CPU"), "cuda": both("CUDA"), "rocm": both("ROCm"), "xpu": both("XPU")}
