"""torchao, saved by transformers; compared with the tensors' own `dequantize` and products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
import torchao.quantization as ao
import transformers
from rows import Case, Made, NotWrittenError
from torchao.quantization import Int4WeightOnlyConfig, PerBlock, PerGroup, PerRow, PerTensor

BY = "torchao's dequantize(), in float32"


def case(label: str, config: Any, named: str, rounding: Any = None, **more: Any) -> Case:
    same = more.pop("same", True)

    def make(folder: Path) -> Made | None:
        made = config() if callable(config) else config
        base = tiny.save(folder.parent / "base", torch.float32)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, quantization_config=transformers.TorchAoConfig(made)
            ).eval()
            model.save_pretrained(folder)
        except (RuntimeError, ImportError, AssertionError, ValueError) as error:
            try:  # transformers reports only that something failed; this says what
                ao.quantize_(torch.nn.Sequential(torch.nn.Linear(256, 256)), made)
            except (RuntimeError, ImportError, AssertionError, ValueError) as said:
                raise NotWrittenError(str(said)) from error
            raise
        if more.get("refused"):
            return None
        weights = {n: m.weight.dequantize() for n, m in tiny.linears(model).items()}
        if rounding is None:
            return Made(weights, BY)
        forward = tiny.round_inputs(tiny.with_weights(weights), rounding)
        return Made(weights, f"{BY}; inputs rounded by definition", forward, same)

    how = f"from_pretrained(TorchAoConfig({label})), save_pretrained"
    return Case("torchao", "torchao", label, how, make, named, **more)


def fp8(size: int = -1) -> Any:
    """Per token, or per ``size`` inputs of it; 0: one scale for all."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        blocks = x.reshape(*x.shape[:-1], -1, size) if size > 0 else x[..., None, :]
        amax = x.abs().max() if size == 0 else blocks.abs().amax(-1, keepdim=True)
        scale = amax / 448
        codes = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return (codes.float() * scale).reshape(x.shape)

    return rounded


def int8(x: torch.Tensor) -> torch.Tensor:
    """Per token, amax / 127.5."""
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    return (x / scale).round().clamp(-128, 127) * scale


def intx(bits: int, **more: Any) -> Any:
    return ao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), **more)


def mapping(kind: str) -> Any:
    return getattr(ao.MappingType, kind)


CASES = [
    case("Int8WeightOnlyConfig", ao.Int8WeightOnlyConfig(), "torchao int8 weights, 8 bit channel"),
    case(
        "Int8WeightOnlyConfig(PerGroup(32))",
        lambda: ao.Int8WeightOnlyConfig(granularity=PerGroup(32)),
        "torchao int8 weights, 8 bit g32",
    ),
    case(
        "Int8DynamicActivationInt8WeightConfig",
        ao.Int8DynamicActivationInt8WeightConfig(),
        "W8A8 channel weights, dynamic symmetric",
        int8,
        same=False,
    ),
    case("Float8WeightOnlyConfig", ao.Float8WeightOnlyConfig(), "channel weights, weight-only"),
    case(
        "Float8DynamicActivationFloat8WeightConfig(PerRow)",
        lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
        "channel weights, dynamic token",
        fp8(),
    ),
    case(
        "Float8DynamicActivationFloat8WeightConfig(PerTensor)",
        lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor()),
        "tensor weights, dynamic tensor",
        fp8(0),
    ),
    case(
        "Float8DynamicActivationFloat8WeightConfig(PerBlock)",
        lambda: ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=[PerBlock([1, 128]), PerBlock([128, 128])]
        ),
        "128x128 weights, dynamic 1x128",
        fp8(128),
    ),
    case(
        "Int4WeightOnlyConfig(PLAIN)",
        lambda: Int4WeightOnlyConfig(group_size=32, int4_packing_format="plain"),
        "torchao int4 g32",
    ),
    case(
        "Int4WeightOnlyConfig(OPAQUE)",
        lambda: Int4WeightOnlyConfig(group_size=32, int4_packing_format="opaque"),
        "",
        refused="layout of one device",
    ),
    *(
        case(
            f"IntxWeightOnlyConfig(int{bits}, PerGroup(32))",
            lambda bits=bits: intx(bits, granularity=PerGroup(32)),
            f"torchao int{bits} weights, {bits} bit g32 symmetric",
        )
        for bits in range(2, 9)
    ),
    case(
        "IntxWeightOnlyConfig(int4, PerGroup(32), ASYMMETRIC)",
        lambda: intx(4, granularity=PerGroup(32), mapping_type=mapping("ASYMMETRIC")),
        "torchao int4 weights, 4 bit g32 asymmetric",
    ),
    case(
        "Int8DynamicActivationIntxWeightConfig",
        lambda: ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4),
        "",
        refused="not supported",
    ),
    case(
        "FqnToConfig",
        lambda: ao.FqnToConfig(
            {
                "re:.*self_attn.*": ao.Int8WeightOnlyConfig(),
                "re:.*mlp.*": intx(4, granularity=PerGroup(32)),
            }
        ),
        "torchao int8 weights",
    ),
]
