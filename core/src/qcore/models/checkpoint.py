"""`Checkpoint`: a Hugging Face folder or a GGUF file, read and checked without loading a weight."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcore.errors import CheckpointError
from qcore.models.hqq_checkpoint import read_hqq_layers
from qcore.models.safetensors_file import TensorInfo, read_header
from qcore.quantization.base import QuantizationConfig
from qcore.quantization.methods import read_quantization_config

__all__ = ["Checkpoint", "open_checkpoint", "read_json_object"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_BESIDE = re.compile(r"-(?!00001-)\d{5}-of-\d{5}$|^mmproj")
"""Names of GGUF files that are no model: a later part of one, the image encoder beside one."""
_MAX_JSON = 256 * 2**20
_METHOD_FILES = (
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quanto_qmap.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder, or a GGUF file.

    Attributes:
        path: the folder or the file.
        config: ``config.json``, or what stands for it.
        tensors: every tensor of every shard, by name.
        quantization: the method with its parameters; None if nothing is quantized.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    quantization: QuantizationConfig | None


def open_checkpoint(path: str | os.PathLike[str], gguf_file: str | None = None) -> Checkpoint:
    """Read a folder's configs and the headers of its shards, and check them.

    Args:
        path: a folder, or a GGUF file.
        gguf_file: the name of the GGUF file in the folder. It may be left out where the folder has
            no ``config.json`` and one GGUF file.

    Raises:
        CheckpointError: something is missing, damaged or unsafe; the message names the file.
        UnknownQuantizationError: the quantization method is not known.
        UnsupportedQuantizationError: the method or its parameters are not supported.
    """
    folder = Path(path)
    file = _gguf_file(folder, gguf_file)
    if file is not None:
        from qcore.models.gguf_checkpoint import open_gguf

        return open_gguf(file)
    if not folder.is_dir():
        more = (
            "a file; give the folder that it lies in"
            if folder.exists()
            else "not there; qcore reads folders, so fetch a model of the hub first"
        )
        raise CheckpointError(f"{folder}: {more}")
    config_file = folder / "config.json"
    config = read_json_object(config_file)
    quantization = _quantization(folder, config)
    tensors = _tensors(folder)
    if quantization is None:
        quantization = read_hqq_layers(tensors)
    return Checkpoint(folder, config, tensors, quantization)


def _gguf_file(path: Path, name: str | None) -> Path | None:
    """The GGUF file that is meant; None for a Hugging Face folder."""
    if name is not None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no folder, so gguf_file={name!r} says nothing")
        return _inside(path, name)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = [file for file in sorted(path.glob("*.gguf")) if not _BESIDE.search(file.stem)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise CheckpointError(
            f"{path}: several GGUF files ({names}); say which: give its path, or gguf_file="
        )
    return files[0] if files else None


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it does not exist, or holds something else.
    """
    try:
        if file.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes are too many for JSON")
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: not there; it is part of a Hugging Face folder") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except RecursionError:
        raise CheckpointError(f"{file}: nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a {type(value).__name__}; it must be a JSON object")
    return value


def _quantization(folder: Path, config: Mapping[str, Any]) -> QuantizationConfig | None:
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if found is not None:
            if not isinstance(found, dict):
                raise CheckpointError(
                    f"{folder / 'config.json'}: {key} is a {type(found).__name__}; "
                    "it must be a JSON object"
                )
            return read_quantization_config(found)
    for name in _METHOD_FILES:
        if (folder / name).is_file():
            return read_quantization_config(read_json_object(folder / name))
    return None


# -- shards ------------------------------------------------------------------------------------


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / _SINGLE).exists() or (folder / _SINGLE).is_symlink():
        return read_header(_inside(folder, _SINGLE))
    if (folder / _INDEX).is_file():
        return _indexed(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(_inside(folder, files[0].name))
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise CheckpointError(
            f"{folder}: neither {_SINGLE} nor {_INDEX}, but several files ({names}); "
            "which are the model's, only the index says"
        )
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    if pickles:
        raise CheckpointError(
            f"{folder}: weights only as pickles ({', '.join(pickles[:5])}), which can run any code "
            "when they are read; qcore never does. Convert them to safetensors"
        )
    raise CheckpointError(f"{folder}: no weights: neither {_SINGLE} nor {_INDEX}")


def _indexed(folder: Path) -> dict[str, TensorInfo]:
    index = folder / _INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map")
    shards: dict[str, dict[str, TensorInfo]] = {}
    found = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index}: tensor {name!r} is in {shard!r}, no file name")
        if shard not in shards:
            shards[shard] = read_header(_inside(folder, shard))
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index}: tensor {name!r} should be in {shard}, which does not have it"
            )
        found[name] = shards[shard][name]
    return found


def _inside(folder: Path, name: str) -> Path:
    """The file ``name``, if it lies in the folder.

    Links may lead out of the folder only into the blobs of the hub's cache, whose snapshots are
    made of such links.
    """
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name or not parts:
        raise CheckpointError(f"{folder}: the index names {name!r}, which is not in the folder")
    file = folder / name
    if not file.is_file():
        lost = " (a link that leads nowhere)" if file.is_symlink() else ""
        raise CheckpointError(f"{file}: not there{lost}; the checkpoint is incomplete")
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parent.parent / "blobs")
    target = file.resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{file}: a link to {target}, outside the folder; not followed")
    return file
