"""HQQ: transformers' `save_pretrained` and its own `save_to_safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel
from rows import Case, Made, NotWrittenError

BY = "HQQLinear.dequantize(), in float32"


def dequantized(model: Any) -> dict[str, torch.Tensor]:
    found = {n: m for n, m in tiny.linears(model).items() if isinstance(m, HQQLinear)}
    return {n: m.dequantize().float() for n, m in found.items()}


def by_transformers(bits: int, axis: int = 1, refused: str | None = None) -> Case:
    def make(folder: Path) -> Made | None:
        base = tiny.save(folder.parent / "base", torch.float32)
        config = transformers.HqqConfig(nbits=bits, group_size=64, axis=axis)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, device_map="cpu", quantization_config=config
            )
            model.save_pretrained(folder)
        except Exception as error:
            raise NotWrittenError(str(error)) from error
        return None if refused else Made(dequantized(model), BY)

    how = f"from_pretrained(HqqConfig(nbits={bits}, group_size=64, axis={axis})), save_pretrained"
    name = f"{bits} bit g64" + (" axis 0" if axis == 0 else "")
    return Case("hqq", "hqq by transformers", name, how, make, f"HQQ {bits} bit g64", refused)


def by_hqq(bits: int, axis: int = 1, refused: str | None = None) -> Case:
    def make(folder: Path) -> Made | None:
        model = tiny.saved(folder.parent / "base", torch.float32)
        config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
        AutoHQQHFModel.quantize_model(
            model, quant_config=config, compute_dtype=torch.float32, device="cpu"
        )
        folder.mkdir()
        AutoHQQHFModel.save_to_safetensors(model, str(folder))
        return None if refused else Made(dequantized(model), BY)

    how = "AutoHQQHFModel.quantize_model, save_to_safetensors"
    name = f"{bits} bit g64" + (" axis 0" if axis == 0 else "")
    return Case("hqq", "hqq save_to_safetensors", name, how, make, f"HQQ {bits} bit g64", refused)


CASES = [
    *(by_transformers(bits) for bits in (1, 2, 3, 4, 8)),
    by_transformers(4, axis=0, refused="axis"),
    *(by_hqq(bits) for bits in (1, 2, 3, 4, 8)),
    by_hqq(4, axis=0, refused="axis"),
]
