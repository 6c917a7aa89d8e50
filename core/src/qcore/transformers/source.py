"""`Source`: the checkpoint files that transformers found, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.models.checkpoint import Checkpoint, read_json_object, stated_quantization
from qcore.models.safetensors_file import TensorInfo, read_header
from qcore.quantization.methods import read_quantization_config

__all__ = ["Source", "open_source"]


@dataclass(frozen=True)
class Source:
    """The files of a checkpoint.

    Attributes:
        checkpoint: their headers.
        stated: what the checkpoint says about its quantization, as ``quantization_config``.
        marks: size and time of change of each file.
    """

    checkpoint: Checkpoint
    stated: Mapping[str, Any]
    marks: Mapping[Path, tuple[int, int]]

    def check_unchanged(self) -> None:
        """Check that the files are those that were loaded.

        Raises:
            CheckpointError: one is gone, or was written again.
        """
        for file, mark in self.marks.items():
            try:
                now = _mark(file)
            except OSError as error:
                raise CheckpointError(
                    f"{file}: {error.strerror or error}. The weights in memory are in the layouts "
                    "of their kernels, so saving copies the checkpoint's tensors from the files "
                    "that the model was loaded from; keep them"
                ) from None
            if now != mark:
                raise CheckpointError(
                    f"{file}: changed since the model was loaded, and saving copies the "
                    "checkpoint's tensors from it; load the model again"
                )


def open_source(files: Sequence[str] | None) -> Source:
    """Read the headers of the files and the folder's configs, and check them.

    Args:
        files: as transformers resolved them.

    Raises:
        CheckpointError: a file is damaged, or holds a pickle; or there is none.
        UnsupportedQuantizationError: the checkpoint is not quantized, or in a way that is not
            supported.
    """
    if not files:
        raise CheckpointError(
            "qcore reads the files of a checkpoint; state_dict= and an empty model have none"
        )
    paths = [Path(file) for file in files]
    for path in paths:
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path}: qcore reads safetensors files through transformers. Pickles can run any "
                "code when they are read; a GGUF file is loaded with qcore.load_model"
            )
    folder = paths[0].parent
    config = read_json_object(folder / "config.json")
    stated = stated_quantization(folder, config)
    if stated is None and isinstance(config.get("text_config"), dict):
        stated = stated_quantization(folder, config["text_config"])
    if stated is None:
        raise UnsupportedQuantizationError(
            f"{folder}: the checkpoint is not quantized, so there is nothing for qcore to run; "
            "load it without quantization_config, or quantize it first (`qcore quantize`)"
        )
    method = read_quantization_config(stated)
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_header(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: {name} is in {tensors[name].file.name} too")
            tensors[name] = info
    checkpoint = Checkpoint(folder, config, tensors, method)
    stated = {"quant_method": method.get_name(), **stated}
    return Source(checkpoint, stated, {path: _mark(path) for path in paths})


def _mark(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
