"""optimum-quanto's own `QuantizedModelForCausalLM`, saved and compared with `dequantize()`."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qint2, qint4, qint8
from rows import Case, Made, NotWrittenError

KINDS = {"qint8": qint8, "qint4": qint4, "qint2": qint2, "qfloat8": qfloat8}


def case(kind: str, named: str) -> Case:
    def make(folder: Path) -> Made:
        model = tiny.saved(folder.parent / "base", torch.float32)
        try:
            made = QuantizedModelForCausalLM.quantize(model, weights=KINDS[kind], exclude="lm_head")
            made.save_pretrained(folder)
        except Exception as error:
            raise NotWrittenError(str(error)) from error
        layers = tiny.linears(model)
        weights = {n: m.weight.dequantize().float() for n, m in layers.items()}
        return Made(weights, "quanto's dequantize(), in float32")

    how = f"QuantizedModelForCausalLM.quantize(weights={kind}), save_pretrained"
    return Case("optimum-quanto", "quanto", kind, how, make, named)


CASES = [
    case("qint8", "qint8"),
    case("qfloat8", "float8"),
    case("qint4", "qint4"),
    case("qint2", "qint2"),
]
