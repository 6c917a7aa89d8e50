"""GPTQModel on a CPU; compared with its own unpacking, with the scales in float32."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.cpu_count = lambda: max(8, len(os.sched_getaffinity(0)))  # it refuses to quantize on fewer

import tiny  # noqa: E402
import torch  # noqa: E402
import unpack  # noqa: E402
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from rows import Case, Made, NotWrittenError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def case(label: str, named: str, dynamic: Any = None, **config: Any) -> Case:
    def make(folder: Path) -> Made:
        base = tiny.save(folder.parent / "base")
        stated = QuantizeConfig(dynamic=dynamic, device="cpu", **config)
        rows = [{"input_ids": r.tolist(), "attention_mask": [1] * 48} for r in tiny.calibration()]
        try:
            model = GPTQModel.load(str(base), stated)
            model.quantize(rows, batch_size=1)
            model.save(str(folder))
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise NotWrittenError(str(error)) from error
        if config.get("quant_method") == "awq":
            stored = load_file(folder / "model.safetensors")
            names = [n.removesuffix(".qweight") for n in stored if n.endswith(".qweight")]
            others = {n: t for n, t in stored.items() if "_proj" not in n}
            weights = {n: unpack.awq(stored, n) for n in names}
            return Made(weights, "plain unpacking of the file, in float32", others=others)
        return read(folder)

    fmt = "awq" if config.get("quant_method") == "awq" else "gptq"
    how = f"GPTQModel.quantize(QuantizeConfig({label}))"
    return Case("gptqmodel", fmt, label, how, make, named)


@torch.no_grad()
def read(folder: Path) -> Made:
    loaded = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu").model
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name, module in loaded.named_modules():
        if not hasattr(module, "dequantize_weight"):
            continue
        module.scales = stored[f"{name}.scales"].float()  # loading rounds them to bfloat16
        weights[name] = module.dequantize_weight().float().t()
    others = {n: p for n, p in loaded.named_parameters() if "proj" not in n and "lm_head" not in n}
    return Made(weights, "GPTQModel's dequantize_weight(), in float32", others=others)


CASES = [
    case("bits=4, group_size=128", "GPTQ 4 bit g128 symmetric", bits=4, group_size=128),
    case("bits=4, sym=False", "GPTQ 4 bit g128 asymmetric", bits=4, group_size=128, sym=False),
    case("bits=8, group_size=32", "GPTQ 8 bit g32 symmetric", bits=8, group_size=32),
    case("bits=8, sym=False", "GPTQ 8 bit g128 asymmetric", bits=8, group_size=128, sym=False),
    case("bits=3", "GPTQ 3 bit g128 symmetric", bits=3, group_size=128),
    case("bits=3, sym=False", "GPTQ 3 bit g128 asymmetric", bits=3, group_size=128, sym=False),
    case("bits=2", "GPTQ 2 bit g32 symmetric", bits=2, group_size=32),
    case("bits=2, sym=False", "GPTQ 2 bit g32 asymmetric", bits=2, group_size=32, sym=False),
    case(
        "group_size=-1",
        "GPTQ 4 bit channel symmetric",
        bits=4,
        group_size=-1,
        act_group_aware=False,
    ),
    case(
        "format=gptq_v2, sym=False",
        "GPTQ 4 bit g128 asymmetric",
        bits=4,
        group_size=128,
        sym=False,
        format="gptq_v2",
    ),
    case(
        "desc_act=True",
        "GPTQ 4 bit g32 symmetric, activation order",
        bits=4,
        group_size=32,
        desc_act=True,
    ),
    case(
        "desc_act=True, sym=False",
        "GPTQ 4 bit g32 asymmetric, activation order",
        bits=4,
        group_size=32,
        desc_act=True,
        sym=False,
    ),
    case(
        "dynamic",
        "GPTQ 8 bit g32 symmetric",
        bits=4,
        group_size=128,
        dynamic={
            r"-:.*layers\.0\.self_attn\.o_proj": {},
            r"+:.*mlp\.down_proj": {"bits": 8, "group_size": 32},
        },
    ),
    case("lm_head=True", "GPTQ 4 bit g128 symmetric", bits=4, group_size=128, lm_head=True),
    case(
        "quant_method=awq, format=gemm",
        "AWQ 4 bit g128 asymmetric",
        bits=4,
        group_size=128,
        sym=False,
        quant_method="awq",
        format="gemm",
    ),
]
