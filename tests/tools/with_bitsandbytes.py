"""bitsandbytes, quantized and saved by transformers on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import tiny
import torch
import transformers
from rows import Case, Made, NotWrittenError

BY = "bitsandbytes' dequantization, in float32"


def case(label: str, named: str, **config: Any) -> Case:
    def make(folder: Path) -> Made:
        base = tiny.save(folder.parent / "base", torch.float32)
        stated = transformers.BitsAndBytesConfig(**config)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, device_map="cpu", quantization_config=stated
            )
            model.save_pretrained(folder)
        except Exception as error:
            raise NotWrittenError(str(error)) from error
        return Made({n: value(m.weight) for n, m in tiny.linears(model).items()}, BY)

    how = f"from_pretrained(BitsAndBytesConfig({label})), save_pretrained"
    return Case("bitsandbytes", "bitsandbytes", label, how, make, named)


def value(weight: Any) -> torch.Tensor:
    if hasattr(weight, "quant_state"):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB)


F32 = {"bnb_4bit_compute_dtype": torch.float32, "load_in_4bit": True}
CASES = [
    case("NF4", "bitsandbytes nf4 g64", bnb_4bit_quant_type="nf4", **F32),
    case(
        "NF4, double quantization",
        "nf4 g64, double",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        **F32,
    ),
    case("FP4", "bitsandbytes fp4 g64", bnb_4bit_quant_type="fp4", **F32),
    case("LLM.int8", "int8", load_in_8bit=True),
]
