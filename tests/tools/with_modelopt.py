"""ModelOpt: calibrated and exported on a CPU, compared with its own tensors' dequantization.

Its quantizers for FP8 inputs run on a CPU too: a model with the dequantized weights and those
quantizers is what the files must mean. Those for NVFP4 and MX inputs are CUDA kernels; there inputs
are rounded by their definition (`rounding`).
"""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import tiny
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import (
    FP8QTensor,
    MXFP4QTensor,
    MXFP8QTensor,
    NVFP4QTensor,
)
from rounding import fp8, mxfp4, mxfp8, nvfp4
from rows import Case, Made, NotWrittenError
from safetensors.torch import load_file

BY = "the dequantization of ModelOpt's tensor classes, in float32"


def quantized(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Any:
    model = tiny.saved(folder.parent / "base", dtype)
    tokens = tiny.calibration()
    return mtq.quantize(model, config, lambda m: m(tokens))


def case(name: str, scheme: str, named: str, also: Any = (), **more: Any) -> Case:
    config = copy.deepcopy(getattr(mtq, name))
    config["quant_cfg"] += also

    def make(folder: Path) -> Made | None:
        try:
            model = quantized(folder, config)
            with torch.no_grad():
                export_hf_checkpoint(model, export_dir=folder)
        except (NotImplementedError, RuntimeError, AssertionError, ImportError) as error:
            raise NotWrittenError(str(error)) from error
        says = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
        assert says["quant_algo"].upper() == scheme, says
        return None if more.get("refused") else read(folder, config, scheme)

    how = f"mtq.quantize({name}), export_hf_checkpoint"
    return Case("nvidia-modelopt", "modelopt", scheme, how, make, named, **more)


def read(folder: Path, config: dict[str, Any], scheme: str) -> Made:
    stored = load_file(folder / "model.safetensors")
    says = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    layers = {n: v["quant_algo"] for n, v in says.get("quantized_layers", {}).items()}
    schemes = layers or dict.fromkeys(tiny.linears(tiny.model()), scheme)
    weights = {n: dequantize(stored, n, algo) for n, algo in schemes.items()}
    if scheme in ("FP8_PB_WO", "W4A16_NVFP4"):
        return Made(weights, BY)
    if scheme.startswith("FP8"):
        forward = quantized(folder, config, torch.float32)
        for name, module in tiny.linears(forward).items():
            module.weight_quantizer.disable()
            module.weight = torch.nn.Parameter(weights[name], False)
            if scheme == "FP8":  # q, k and v share a scale, once they are exported
                module.input_quantizer.amax = stored[f"{name}.input_scale"] * 448
        return Made(weights, f"{BY}, and its quantizers of inputs", forward)
    rounding = {}
    for name, algo in schemes.items():
        rounding[name] = {"MXFP8": mxfp8, "MXFP4": mxfp4}.get(algo)
        if algo in ("FP8", "NVFP4"):
            rule = fp8 if algo == "FP8" else nvfp4
            rounding[name] = partial(rule, scale=stored[f"{name}.input_scale"])
    forward = tiny.round_inputs(tiny.with_weights(weights), rounding)
    # For MXFP4, ModelOpt takes the next power of two from 1.5 on, qcore from 1.75 on.
    return Made(weights, f"{BY}; inputs rounded by definition", forward, scheme != "MXFP4")


def dequantize(stored: dict[str, torch.Tensor], name: str, scheme: str) -> torch.Tensor:
    """By ModelOpt's own classes, in float32."""
    codes, scale = stored[f"{name}.weight"], stored[f"{name}.weight_scale"]
    shape = torch.Size((codes.shape[0], codes.shape[1] * (2 if "FP4" in scheme else 1)))
    if "NVFP4" in scheme:
        outer = stored[f"{name}.weight_scale_2"]
        held = NVFP4QTensor(shape, torch.float32, codes)
        return held.dequantize(scale=scale, double_scale=outer, block_sizes={-1: 16})
    if scheme == "MXFP8":
        return MXFP8QTensor(shape, torch.float32, codes).dequantize(scale=scale)
    if scheme == "MXFP4":
        held = MXFP4QTensor(shape, torch.float32, codes)
        return held.dequantize(scale=scale, block_sizes={-1: 32})
    held = FP8QTensor(shape, torch.float32, codes)
    if scheme == "FP8_PB_WO":
        blocks = {-1: 128, -2: 128}
        return held.dequantize(scale=scale[:, 0, :, 0], block_sizes=blocks)
    return held.dequantize(scale=scale.reshape(-1, 1) if scale.dim() else scale)


CASES = [
    case("FP8_DEFAULT_CFG", "FP8", "tensor weights, static tensor activations"),
    case(
        "FP8_PER_CHANNEL_PER_TOKEN_CFG",
        "FP8_PER_CHANNEL_PER_TOKEN",
        "channel weights, dynamic token activations",
    ),
    case("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "FP8_PB_WO", "128x128 weights, weight-only"),
    case("NVFP4_DEFAULT_CFG", "NVFP4", "ModelOpt NVFP4, nvfp4 activations"),
    case("W4A16_NVFP4_CFG", "W4A16_NVFP4", "ModelOpt NVFP4, weight-only"),
    case("MXFP8_DEFAULT_CFG", "MXFP8", "ModelOpt MXFP8, mxfp8 activations"),
    case(
        "FP8_DEFAULT_CFG",
        "MIXED_PRECISION",
        "ModelOpt NVFP4, nvfp4 activations",
        also=[
            {"quantizer_name": f"*mlp*{which}_quantizer", "cfg": stated["cfg"]}
            for which in ("weight", "input")
            for stated in mtq.NVFP4_DEFAULT_CFG["quant_cfg"]
            if stated["quantizer_name"] == f"*{which}_quantizer"
        ],
    ),
    case("INT4_AWQ_CFG", "W4A16_AWQ", "", refused="TensorRT"),
    case("INT8_SMOOTHQUANT_CFG", "W8A8_SQ_PER_CHANNEL", "", refused="scales inputs"),
    case("INT8_WEIGHT_ONLY_CFG", "W8A16", "", refused="quantize to W8A16"),
    case("NVFP4_AWQ_LITE_CFG", "NVFP4_AWQ", "", refused="scales inputs"),
    case("NVFP4_SVDQUANT_DEFAULT_CFG", "NVFP4_SVD", "", refused="low rank"),
    case("W4A8_AWQ_BETA_CFG", "W4A8_AWQ", "", refused="TensorRT"),
    case("MXFP4_DEFAULT_CFG", "MXFP4", "ModelOpt MXFP4, mxfp4 activations"),
    case("W4A8_MXFP4_FP8_CFG", "W4A8_MXFP4_FP8", "", refused="per tensor"),
    case("W4A8_NVFP4_FP8_CFG", "W4A8_NVFP4_FP8", "", refused="per tensor"),
]
