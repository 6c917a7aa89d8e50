"""`Checkpoint`: a Hugging Face folder or a GGUF file, read and checked without loading a weight."""

from __future__ import annotations

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
from qcore.quantization.json_text import parse_json, shown
from qcore.quantization.methods import read_quantization_config

__all__ = ["Checkpoint", "inside", "open_checkpoint", "read_json_object", "stated_quantization"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_NO_PICKLES = (
    "which can run any code when they are read; qcore never does. Convert them to safetensors: "
    "where nothing can be lost, load the model with transformers, and save_pretrained() it"
)
_BESIDE = re.compile(r"-(?!00001-)\d{5}-of-\d{5}$|^mmproj")
"""Names of GGUF files that are no model: a later part of one, the image encoder beside one."""
_MAX_JSON = 64 * 2**20
_MAX_SHARDS = 4096
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
    if "\0" in str(folder):
        raise CheckpointError(f"{str(folder)!r} is no path")
    file = _gguf_file(folder, gguf_file)
    if file is not None:
        from qcore.models.gguf_checkpoint import open_gguf

        return open_gguf(file)
    if not folder.is_dir():
        if not folder.exists():
            more = "not there; qcore reads folders, so fetch a model of the hub first"
        elif folder.suffix in _PICKLES:
            more = f"one of the pickles, {_NO_PICKLES}"
        else:
            more = "a file; give the folder that it lies in"
        raise CheckpointError(f"{folder}: {more}")
    config_file = folder / "config.json"
    config = read_json_object(config_file)
    stated = stated_quantization(folder, config)
    tensors = _tensors(folder)
    quantization: QuantizationConfig | None = (
        read_hqq_layers(tensors) if stated is None else read_quantization_config(stated)
    )
    return Checkpoint(folder, config, tensors, quantization)


def _gguf_file(path: Path, name: str | None) -> Path | None:
    """The GGUF file that is meant; None for a Hugging Face folder."""
    if name is not None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no folder, so gguf_file={name!r} says nothing")
        return inside(path, name)
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
    return inside(path, files[0].name) if files else None


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint's folder, which holds an object.

    Raises:
        CheckpointError: it does not exist, leads out of its folder, or holds something else.
    """
    if not file.exists() and not file.is_symlink():
        raise CheckpointError(f"{file}: not there; it is part of a Hugging Face folder")
    inside(file.parent, file.name)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _MAX_JSON:
                raise CheckpointError(f"{file}: {size} bytes are too many for JSON")
            raw = stream.read(size)
        value = parse_json(raw)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: no JSON that is read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a {type(value).__name__}; it must be a JSON object")
    return value


def stated_quantization(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the folder says about its quantization, as it is written; None if it says nothing.

    Raises:
        CheckpointError: it is no JSON object.
    """
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if found is not None:
            if not isinstance(found, dict):
                raise CheckpointError(
                    f"{folder / 'config.json'}: {key} is a {type(found).__name__}; "
                    "it must be a JSON object"
                )
            return found
    for name in _METHOD_FILES:
        if (folder / name).is_file():
            return read_json_object(folder / name)
    return None


# -- shards ------------------------------------------------------------------------------------


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / _SINGLE).exists() or (folder / _SINGLE).is_symlink():
        return read_header(inside(folder, _SINGLE))
    if (folder / _INDEX).is_file():
        return _indexed(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(inside(folder, files[0].name))
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise CheckpointError(
            f"{folder}: neither {_SINGLE} nor {_INDEX}, but several files ({names}); "
            "which are the model's, only the index says"
        )
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    if pickles:
        raise CheckpointError(
            f"{folder}: weights only as pickles ({', '.join(pickles[:5])}), {_NO_PICKLES}"
        )
    raise CheckpointError(f"{folder}: no weights: neither {_SINGLE} nor {_INDEX}")


def _indexed(folder: Path) -> dict[str, TensorInfo]:
    index = folder / _INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map")
    places: dict[str, Path] = {}
    headers: dict[Path, dict[str, TensorInfo]] = {}
    found = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index}: {shown(name)} is in {shown(shard)}, no file name")
        if shard not in places:
            if Path(shard).suffix in _PICKLES:
                raise CheckpointError(
                    f"{index}: {shown(shard)} is one of the pickles, {_NO_PICKLES}"
                )
            if len(places) == _MAX_SHARDS:
                raise CheckpointError(f"{index}: more than {_MAX_SHARDS} names of shards")
            file = inside(folder, shard)
            # One file may have several names; it is read once.
            places[shard] = file.resolve()
            if places[shard] not in headers:
                headers[places[shard]] = read_header(file)
        place = places[shard]
        if name not in headers[place]:
            raise CheckpointError(
                f"{index}: tensor {shown(name)} should be in {shard}, which does not have it"
            )
        found[name] = headers[place][name]
    return found


def inside(folder: Path, name: str) -> Path:
    """The regular file ``name``, if it lies in the folder.

    Links may lead out of the folder only into the blobs of the hub's cache, whose snapshots are
    made of such links.

    Raises:
        CheckpointError: it does not, or it is a device, a pipe or a folder.
    """
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name or not parts:
        raise CheckpointError(f"{folder}: {shown(name)} is named, which is not in the folder")
    file = folder / name
    try:
        if not file.is_file():
            if file.exists():
                raise CheckpointError(f"{file}: no regular file")
            lost = " (a link that leads nowhere)" if file.is_symlink() else ""
            raise CheckpointError(f"{file}: not there{lost}; the checkpoint is incomplete")
        roots = [folder.resolve()]
        if roots[0].parent.name == "snapshots":
            roots.append(roots[0].parent.parent / "blobs")
        target = file.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise CheckpointError(f"{folder}: {shown(name)} cannot be found: {error}") from None
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{file}: a link to {target}, outside the folder; not followed")
    return file
