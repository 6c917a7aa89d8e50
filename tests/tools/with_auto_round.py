"""auto-round, without tuning (``iters=0``: what it writes is laid out the same)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
import unpack
from auto_round import AutoRound
from read_compressed_tensors import read
from rounding import fp8, mxfp4, mxfp8, nvfp4
from rows import Case, Made, NotWrittenError
from safetensors.torch import load_file

BY = "plain unpacking of the files, in float32"


def case(label: str, fmt: str, named: str, refused: str | None = None, **how: Any) -> Case:
    given = {"scheme": label.split(" ")[0], **how}

    def make(folder: Path) -> Made | None:
        model = tiny.saved(folder.parent / "base")
        try:
            rounder = AutoRound(
                model,
                tiny.tokenizer(),
                iters=0,
                nsamples=8,
                seqlen=48,
                dataset=[row[None] for row in tiny.calibration(8)],
                device_map="cpu",
                **given,
            )
            rounder.quantize_and_save(str(folder), format=fmt)
        except (NotImplementedError, ValueError, RuntimeError, AssertionError) as error:
            raise NotWrittenError(str(error)) from error
        (inner,) = folder.iterdir()  # it makes a folder of its own in the one that it is given
        for file in inner.iterdir():
            file.rename(folder / file.name)
        if refused:
            return None
        return read(folder) if fmt == "llm_compressor" else unpacked(folder, fmt, given)

    line = f"AutoRound({label}, iters=0).quantize_and_save(format={fmt!r})"
    return Case("auto-round", fmt, label, line, make, named, refused)


def unpacked(folder: Path, fmt: str, how: dict[str, Any]) -> Made:
    stored = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    if not how["scheme"].endswith("A16"):
        return floats(stored, how["scheme"])
    names = [n.removesuffix(".qweight") for n in stored if n.endswith(".qweight")]
    bits = int(how["scheme"][1])
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    packing = config.get("packing_format", fmt)
    if "awq" in packing:
        return Made({n: unpack.awq(stored, n) for n in names}, BY)
    # Only what names GPTQ lacks one in its zero points.
    one = int("auto_gptq" in packing)
    return Made({n: unpack.gptq(stored, n, bits, one) for n in names}, BY)


def floats(stored: dict[str, torch.Tensor], scheme: str) -> Made:
    """NVFP4, MX and FP8 by their definitions."""
    weights, rule = {}, {}
    for name in tiny.linears(tiny.model()):
        of = {n.removeprefix(f"{name}."): t for n, t in stored.items() if n.startswith(f"{name}.")}
        codes = of.get("weight_packed", of.get("weight"))
        values = codes.float()
        if codes.dtype == torch.uint8:
            values = E2M1[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]
        if scheme == "NVFP4":
            scale = of["weight_scale"].float() / of["weight_global_scale"]
            weights[name] = values * scale.repeat_interleave(16, 1)
            rule[name] = partial(nvfp4, scale=1 / of["input_global_scale"])
        elif scheme.startswith("MX"):
            scale = torch.exp2(of["weight_scale"].float() - 127)
            weights[name] = values * scale.repeat_interleave(32, 1)
            rule[name] = mxfp8 if scheme == "MXFP8" else partial(mxfp4, top=7)
        elif scheme == "FP8_STATIC":
            weights[name] = values * of["weight_scale"].float()[:, None]
            rule[name] = partial(fp8, scale=of["input_scale"].float())
        else:
            scale = of["weight_scale_inv"].float().repeat_interleave(128, 0)
            weights[name] = values * scale.repeat_interleave(128, 1)
            rule[name] = groups_of_128
    forward = tiny.round_inputs(tiny.with_weights(weights), rule)
    return Made(weights, f"{BY}; inputs rounded by definition", forward)


def groups_of_128(x: torch.Tensor) -> torch.Tensor:
    """amax / 448 for each."""
    parts = x.reshape(*x.shape[:-1], -1, 128)
    return fp8(parts, parts.abs().amax(-1, keepdim=True) / 448).reshape(x.shape)


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
CASES = [
    case("W4A16", "auto_round", "GPTQ 4 bit g128 symmetric"),
    case("W4A16 asymmetric", "auto_round", "4 bit g128 asymmetric", sym=False),
    case("W8A16", "auto_round", "GPTQ 8 bit g128 symmetric"),
    case("W2A16", "auto_round", "GPTQ 2 bit g128"),
    case("W4A16", "auto_gptq", "GPTQ 4 bit g128 symmetric"),
    case("W4A16 asymmetric", "auto_gptq", "GPTQ 4 bit g128 asymmetric", sym=False),
    case("W4A16", "auto_awq", "AWQ 4 bit g128"),
    case("W4A16 asymmetric", "auto_awq", "AWQ 4 bit g128 asymmetric", sym=False),
    case("NVFP4", "llm_compressor", "nvfp4-pack-quantized, nvfp4 activations"),
    case("MXFP4", "llm_compressor", "mxfp4-pack-quantized, mxfp4 activations"),
    case("MXFP8", "llm_compressor", "mxfp8"),
    case("FP8_STATIC", "llm_compressor", "channel weights, static tensor activations"),
    case("INT8_W8A8", "llm_compressor", "W8A8 channel weights"),
    case("W4A16", "llm_compressor", "pack-quantized 4 bit g128 symmetric"),
    case("NVFP4", "auto_round", "auto-round NVFP4, nvfp4 activations"),
    case("MXFP4", "auto_round", "auto-round MXFP4, mxfp4 activations"),
    case("MXFP8", "auto_round", "auto-round MXFP8, mxfp8 activations"),
    case("FP8_STATIC", "auto_round", "auto-round FP8 channel weights, static tensor"),
    case("FP8_BLOCK", "auto_round", "auto-round FP8 128x128 weights, dynamic 1x128"),
]
