"""compressed-tensors, written by llm-compressor and read back by compressed-tensors itself.

transformers loads the folder in float32 with compressed-tensors' own decompression; the model that
comes back rounds inputs as compressed-tensors does.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import datasets
import tiny
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    preset_name_to_scheme,
)
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform import AWQModifier
from read_compressed_tensors import read
from rows import Case, Made, NotWrittenError

logging.disable(logging.WARNING)
LINEARS = ["Linear"]
BASE = {"ignore": ["lm_head"]}


def scheme(name: str, **changes: Any) -> QuantizationScheme:
    """A preset with other ``weights`` or ``input_activations``."""
    made = preset_name_to_scheme(name, LINEARS)
    for part, values in changes.items():
        stated = getattr(made, part)
        given = {} if stated is None else stated.model_dump()
        setattr(made, part, None if values is None else QuantizationArgs(**{**given, **values}))
    return made


def write(folder: Path, *recipe: Any, dtype: torch.dtype = torch.bfloat16) -> None:
    tokens = tiny.calibration()
    data = datasets.Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
    )
    model = tiny.saved(folder.parent / "base", dtype)
    oneshot(
        model=model,
        processor=tiny.tokenizer(),
        dataset=data,
        recipe=list(recipe),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
    )
    model.save_pretrained(folder, save_compressed=True)


def case(
    name: str, named: str, *recipe: Any, fmt: str = "compressed-tensors", how: str = "", **more: Any
) -> Case:
    def make(folder: Path) -> Made | None:
        try:
            steps = [step() if callable(step) else copy.deepcopy(step) for step in recipe]
        except ValueError as error:
            raise NotWrittenError(str(error)) from error
        try:
            write(folder, *steps)
        except RuntimeError as error:
            raise NotWrittenError(str(error)) from error
        return None if more.get("refused") else read(folder)

    how = how or f"oneshot(QuantizationModifier({name}))"
    return Case("llmcompressor", fmt, name, how, make, named, **more)


def preset(name: str, named: str, label: str = "", **changes: Any) -> Case:
    groups = {"group_0": scheme(name, **changes)}
    return case(label or name, named, QuantizationModifier(config_groups=groups, **BASE))


def gptq(label: str, named: str, name: str, **changes: Any) -> Case:
    def recipe() -> GPTQModifier:
        return GPTQModifier(config_groups={"group_0": scheme(name, **changes)}, **BASE)

    return case(label, named, recipe, how=f"oneshot(GPTQModifier({label.removeprefix('GPTQ ')}))")


def awq(label: str, named: str, name: str) -> Case:
    groups = {"group_0": scheme(name)}
    recipe = [AWQModifier(), QuantizationModifier(config_groups=groups, **BASE)]
    return case(label, named, *recipe, how=f"oneshot(AWQModifier, QuantizationModifier({name}))")


STATIC = {"strategy": QuantizationStrategy.TENSOR, "dynamic": False}
GROUP32 = {"strategy": QuantizationStrategy.GROUP, "group_size": 32}
CHANNEL = {"strategy": QuantizationStrategy.CHANNEL, "group_size": None}
TENSOR = {"strategy": QuantizationStrategy.TENSOR, "group_size": None}
ASYM = {"symmetric": False}
BY_GROUP = {"actorder": "group"}
BY_WEIGHT = {"actorder": "weight"}


def several() -> Case:
    """Attention in FP8, the rest in int4 by group, one layer in 8 bits, one not at all."""
    groups = {
        "attention": scheme("FP8_DYNAMIC"),
        "mlp": scheme("W4A16"),
        "one": scheme("W8A16"),
    }
    groups["attention"].targets = ["re:.*self_attn.*"]
    groups["mlp"].targets = ["re:.*mlp.(gate|up)_proj", "model.layers.1.mlp.down_proj"]
    groups["one"].targets = ["model.layers.0.mlp.down_proj"]
    recipe = QuantizationModifier(
        config_groups=groups, ignore=["lm_head", "model.layers.1.self_attn.o_proj"]
    )
    return case("several config groups", "float-quantized channel weights", recipe)


def with_cache(name: str, named: str) -> Case:
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    recipe = QuantizationModifier(
        config_groups={"group_0": scheme(name)}, kv_cache_scheme=cache, **BASE
    )
    return case(f"{name} with kv_cache_scheme", named, recipe)


PACKED = "pack-quantized"
CASES = [
    *(preset(f"W{bits}A16", f"{PACKED} {bits} bit g128 symmetric") for bits in range(2, 9)),
    preset("W4A16_ASYM", f"{PACKED} 4 bit g128 asymmetric"),
    preset("W8A16", f"{PACKED} 8 bit g32 symmetric", "W8A16 g32", weights=GROUP32),
    preset("W8A16", f"{PACKED} 8 bit channel symmetric", "W8A16 channel", weights=CHANNEL),
    preset("W8A16", f"{PACKED} 8 bit g128 asymmetric", "W8A16 asymmetric", weights=ASYM),
    preset("W3A16", f"{PACKED} 3 bit g128 asymmetric", "W3A16 asymmetric", weights=ASYM),
    preset("W8A16", f"{PACKED} 8 bit", "W8A16 tensor", weights=TENSOR),
    preset("W8A8", "W8A8 channel weights, dynamic symmetric"),
    preset(
        "W8A8",
        "W8A8 channel weights, dynamic asymmetric",
        "W8A8 dynamic asymmetric",
        input_activations=ASYM,
    ),
    preset(
        "W8A8",
        "W8A8 channel weights, static symmetric",
        "W8A8 static",
        input_activations=STATIC,
    ),
    preset(
        "W8A8",
        "W8A8 channel weights, static asymmetric",
        "W8A8 static asymmetric",
        input_activations={**STATIC, **ASYM},
    ),
    preset(
        "W8A8",
        "W8A8 tensor weights, static symmetric",
        "W8A8 tensor static",
        weights=TENSOR,
        input_activations=STATIC,
    ),
    preset("W4A8", "4 bit g128 symmetric, int8 activations"),
    preset("W4AFP8", "4 bit g128 symmetric, float8_e4m3fn activations"),
    preset(
        "W4A8",
        "W4A8 channel weights, dynamic symmetric",
        "W4A8 channel",
        weights=CHANNEL,
    ),
    case(
        "W4A4",
        "",
        QuantizationModifier(config_groups={"group_0": scheme("W4A4")}, **BASE),
        refused="num_bits is 4",
    ),
    preset("FP8", "tensor weights, static tensor activations"),
    preset(
        "FP8", "channel weights, static tensor activations", "FP8 channel static", weights=CHANNEL
    ),
    preset(
        "FP8",
        "channel weights, weight-only",
        "FP8 weight-only",
        weights=CHANNEL,
        input_activations=None,
    ),
    preset("FP8_DYNAMIC", "channel weights, dynamic token activations"),
    preset("FP8_BLOCK", "128x128 weights, dynamic 1x128 activations"),
    preset("NVFP4A16", "nvfp4-pack-quantized, weight-only"),
    preset("NVFP4", "nvfp4-pack-quantized, nvfp4 activations"),
    preset("MXFP4A16", "mxfp4-pack-quantized, weight-only"),
    preset("MXFP4", "mxfp4-pack-quantized, mxfp4 activations"),
    preset("MXFP8A16", "weight-only"),
    preset("MXFP8", "mxfp8 activations"),
    several(),
    with_cache("W4A16", f"{PACKED} 4 bit g128 symmetric"),
    gptq("GPTQ W4A16", f"{PACKED} 4 bit g128 symmetric", "W4A16"),
    gptq("GPTQ W4A16 actorder group", "activation order", "W4A16", weights=BY_GROUP),
    gptq(
        "GPTQ W4A16 actorder weight", f"{PACKED} 4 bit g128 symmetric", "W4A16", weights=BY_WEIGHT
    ),
    gptq(
        "GPTQ W4A16_ASYM actorder group",
        "4 bit g128 asymmetric, activation order",
        "W4A16_ASYM",
        weights=BY_GROUP,
    ),
    gptq("GPTQ W8A8", "W8A8 channel weights, dynamic symmetric", "W8A8"),
    awq("AWQ W4A16_ASYM", f"{PACKED} 4 bit g128 asymmetric", "W4A16_ASYM"),
    awq("AWQ W4A16", f"{PACKED} 4 bit g128 symmetric", "W4A16"),
]
