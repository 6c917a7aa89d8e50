"""The checkpoint that is to be quantized: opened, and refused if it is quantized already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qcore.errors import CheckpointError
from qcore.models.checkpoint import Checkpoint, inside, open_checkpoint

__all__ = ["check_float", "companions", "open_float_checkpoint"]

_QUANTIZED_MARKS = ("hf_quant_config.json",)


def open_float_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's config and the headers of its shards.

    Raises:
        CheckpointError: something is missing, damaged or unsafe, or it is quantized already.
    """
    for name in _QUANTIZED_MARKS:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder}: it holds {name}, so it is quantized already; give the float checkpoint"
            )
    checkpoint = open_checkpoint(folder)
    check_float(checkpoint)
    return checkpoint


def check_float(checkpoint: Checkpoint, asked_by: str = "quantizing") -> None:
    """Raise `CheckpointError` for a checkpoint that is quantized already, or is a GGUF file."""
    path, method = checkpoint.path, checkpoint.quantization
    if path.is_file():
        raise CheckpointError(
            f"{path}: {asked_by} starts from safetensors, and this is a GGUF file, whose layers "
            "stay in their blocks; give the float checkpoint"
        )
    if method is not None:
        raise CheckpointError(
            f"{path}: it is quantized already ({method.get_name()}), so {asked_by} is not "
            "possible; give the float checkpoint"
        )


def companions(folder: Path) -> Iterator[Path]:
    """The files that go with the weights: tokenizer, generation config, templates, licence.

    Raises:
        CheckpointError: one is a link that leads out of the folder.
    """
    for path in sorted(folder.iterdir()):
        name = path.name
        if not path.is_file() or name == "config.json" or name.endswith(".index.json"):
            continue
        legal = name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "USE_POLICY"))
        if legal or path.suffix in (".json", ".txt", ".model", ".jinja", ".tiktoken"):
            yield inside(folder, name)
