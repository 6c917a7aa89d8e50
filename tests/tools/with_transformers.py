"""transformers' own FP8 formats.

It refuses to quantize to them without a GPU, so that its operation for one weight is called here;
the folder is read back by transformers, which dequantizes on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
import transformers
from rows import Case, Made, NotWrittenError
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Quantize

BY = "transformers' own dequantization"


def blocks(label: str, named: str, size: tuple[int, int] | None, **more: Any) -> Case:
    def make(folder: Path) -> Made:
        stated = transformers.FineGrainedFP8Config(weight_block_size=size)
        operation = Fp8Quantize(SimpleNamespace(quantization_config=stated))
        model = tiny.model()
        tensors = dict(model.state_dict())
        for name in tiny.linears(model):
            key = f"{name}.weight"
            made = operation.convert({key: [tensors.pop(key)]})
            tensors |= {k: v[0] if isinstance(v, list) else v for k, v in made.items()}
        folder.mkdir()
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
        config = model.config.to_dict()
        config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
        config["quantization_config"] = stated.to_dict() | {"modules_to_not_convert": ["lm_head"]}
        (folder / "config.json").write_text(json.dumps(config, default=str))
        read = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        weights = {n: m.weight.float() for n, m in tiny.linears(read).items()}
        forward = tiny.round_inputs(tiny.with_weights(weights), lambda x: fp8(x, size))
        return Made(weights, f"{BY}; inputs rounded by definition", forward)

    how = f"Fp8Quantize of FineGrainedFP8Config(weight_block_size={size})"
    return Case("transformers", "fp8", label, how, make, named)


def fp8(x: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Per block of a row's inputs, or per row."""
    parts = x.reshape(*x.shape[:-1], -1, size[1] if size else x.shape[-1])
    scale = parts.abs().amax(-1, keepdim=True) / 448
    return ((parts / scale).to(torch.float8_e4m3fn).float() * scale).reshape(x.shape)


def fbgemm() -> Case:
    def make(folder: Path) -> None:
        base = tiny.save(folder.parent / "base")
        try:
            transformers.AutoModelForCausalLM.from_pretrained(
                base, quantization_config=transformers.FbgemmFp8Config()
            ).save_pretrained(folder)
        except Exception as error:
            raise NotWrittenError(str(error)) from error

    how = "from_pretrained(FbgemmFp8Config()), save_pretrained"
    return Case("transformers", "fbgemm_fp8", "FbgemmFp8Config", how, make, "fbgemm_fp8")


CASES = [
    blocks("FineGrainedFP8Config", "fp8 128x128 weights, dynamic 1x128", (128, 128)),
    blocks("FineGrainedFP8Config(64x64)", "fp8 64x64 weights, dynamic 1x64", (64, 64)),
    fbgemm(),
]
