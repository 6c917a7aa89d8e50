"""`quantize_checkpoint`: a float checkpoint in, one of compressed-tensors' formats out."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import qcore
from qcore.errors import CheckpointError, ConfigError
from qcore.models.checkpoint import Checkpoint
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.quantize.model_layers import LinearLayer, ModelLayers, find_layers
from qcore.quantize.report import KeptLayer, QuantizedLayer, QuantizeReport, size_text
from qcore.quantize.rounding import round_weight
from qcore.quantize.scheme import QuantizeScheme
from qcore.quantize.source import companions, open_float_checkpoint
from qcore.quantize.writer import PlannedTensor, ShardWriter

__all__ = ["MAX_SHARD_BYTES", "Progress", "quantize_checkpoint"]

MAX_SHARD_BYTES = 2_000_000_000
"""What one weight file holds at most, unless a single layer is larger."""

FORMAT_VERSION = "0.19.0"
"""The release of compressed-tensors whose files these are like, field by field."""

Progress = Callable[[int, int, str], None]
"""Called as ``progress(bytes done, bytes in all, name of the tensor)``, in bytes of the source."""


def quantize_checkpoint(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    scheme: str | QuantizeScheme = "int4-g128",
    lm_head: bool = False,
    lm_head_scheme: str | QuantizeScheme | None = None,
    ignore: Sequence[str] = (),
    search: bool = True,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> QuantizeReport:
    """Quantize the linear layers of a checkpoint, by rounding to nearest.

    Tensors are read, rounded and written one at a time, so memory is bounded by the largest. The
    result appears under its name when it is complete, or not at all.

    Args:
        source: a Hugging Face folder with safetensors in float32, float16 or bfloat16.
        dest: the folder to make.
        scheme: what weights are rounded to; see `qcore.quantize.scheme`.
        lm_head: quantize the layer that makes the logits too. If it is tied to the embedding, it
            gets a weight of its own, and the embedding stays as it is.
        lm_head_scheme: for that layer; implies ``lm_head``.
        ignore: layers to keep: names of modules, or ``re:`` and a regular expression that fits
            the beginning of the name.
        search: choose each scale by the squared error; else by the largest magnitude.
        progress: called after every tensor.
        overwrite: replace ``dest`` if it is a checkpoint already.

    Raises:
        CheckpointError: the source cannot be quantized, or ``dest`` is in the way.
        ConfigError: a scheme cannot be read, or an ignored name fits no layer.
        MissingDependencyError: transformers is not installed.
    """
    started = time.perf_counter()
    main = QuantizeScheme.parse(scheme)
    head_scheme = QuantizeScheme.parse(lm_head_scheme) if lm_head_scheme is not None else None
    if head_scheme is None and lm_head:
        head_scheme = main
    source, dest = Path(source), Path(dest)
    _check_dest(source, dest, overwrite)
    checkpoint = open_float_checkpoint(source)
    layers = find_layers(checkpoint)
    chosen, kept = _choose(layers, main, head_scheme, ignore)
    groups = _plan(checkpoint, chosen, layers)
    needed = sum(tensor.nbytes for group in groups for tensor in group)
    with _appearing(dest, overwrite) as folder:
        _check_space(folder, needed)
        metadata = {"format": "pt", "quantized_by": f"qcore {qcore.__version__}"}
        with ShardWriter(folder, groups, MAX_SHARD_BYTES, metadata) as writer:
            done = _write(checkpoint, chosen, writer, search, progress)
            writer.finish()
        quantization = _quantization_config(main, head_scheme, layers, chosen, kept, search)
        config = _config(checkpoint.config, quantization, layers, chosen)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        for path in companions(source):
            shutil.copyfile(path, folder / path.name)
    return QuantizeReport(
        source=source,
        dest=dest,
        layers=tuple(done),
        kept=tuple(kept),
        notes=tuple(_notes(layers)),
        bytes_before=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        bytes_after=needed,
        shards=writer.shards,
        seconds=time.perf_counter() - started,
    )


Chosen = dict[str, tuple[LinearLayer, QuantizeScheme]]
"""Module name -> the layer and what it is rounded to."""


def _choose(
    layers: ModelLayers,
    scheme: QuantizeScheme,
    head_scheme: QuantizeScheme | None,
    ignore: Sequence[str],
) -> tuple[Chosen, list[KeptLayer]]:
    """What is rounded, and what is not and why."""
    wanted = [(layer, scheme) for layer in layers.linear]
    kept = [
        KeptLayer(name, "no linear layer of the model (an expert?)", asked_for=False)
        for name in layers.strangers
    ]
    if layers.head is not None and head_scheme is not None:
        wanted.append((layers.head, head_scheme))
    elif layers.head is not None and not layers.tied:
        kept.append(KeptLayer(layers.head.name, "the head was not asked for", asked_for=True))
    elif head_scheme is not None:
        raise CheckpointError("this model has no linear layer that makes the logits (lm_head)")
    patterns = {text: _pattern(text) for text in ignore}
    unused = set(patterns)
    chosen: Chosen = {}
    for layer, its_scheme in wanted:
        fitting = [text for text, fits in patterns.items() if fits(layer.name)]
        unused.difference_update(fitting)
        refusal = its_scheme.refusal(layer.weight.shape[1])
        if fitting:
            kept.append(KeptLayer(layer.name, f"ignored ({fitting[0]})", asked_for=True))
        elif refusal is not None:
            kept.append(KeptLayer(layer.name, refusal, asked_for=False))
        else:
            chosen[layer.name] = (layer, its_scheme)
    if unused:
        raise ConfigError(
            f"ignore: {sorted(unused)[0]!r} fits no linear layer; they are called "
            f"{wanted[0][0].name!r} and the like"
        )
    if not chosen:
        raise CheckpointError(f"nothing is left to quantize: {kept[-1].name}: {kept[-1].reason}")
    return chosen, kept


def _pattern(text: str) -> Callable[[str], bool]:
    """What compressed-tensors means by an entry of ``ignore``."""
    if not text.startswith("re:"):
        return lambda name: name == text
    try:
        compiled = re.compile(text.removeprefix("re:"))
    except re.error as error:
        raise ConfigError(f"ignore: {text!r} is no regular expression: {error}") from None
    return lambda name: compiled.match(name) is not None


# -- writing -----------------------------------------------------------------------------------


def _plan(checkpoint: Checkpoint, chosen: Chosen, layers: ModelLayers) -> list[list[PlannedTensor]]:
    """Every tensor of the result, those of a layer together, in the order of the source."""
    rounded = {item[0].weight.name: item for item in chosen.values() if not _is_tied(item[0])}
    groups = []
    for tensor in _in_file_order(checkpoint):
        if tensor.name in rounded:
            groups.append(_planned(*rounded[tensor.name]))
        else:
            groups.append([PlannedTensor(tensor.name, tensor.dtype, tensor.shape)])
    head = layers.head
    if head is not None and head.name in chosen and _is_tied(head):
        groups.append(_planned(*chosen[head.name]))
    return groups


def _is_tied(layer: LinearLayer) -> bool:
    return layer.weight.name != f"{layer.key}.weight"


def _in_file_order(checkpoint: Checkpoint) -> list[TensorInfo]:
    return sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file, tensor.name))


def _planned(layer: LinearLayer, scheme: QuantizeScheme) -> list[PlannedTensor]:
    """The tensors of a rounded layer."""
    N, K = layer.weight.shape
    G, pack = scheme.groups(K), 32 // scheme.bits
    scale = PlannedTensor(f"{layer.key}.weight_scale", layer.weight.dtype, (N, G))
    if scheme.int8_activations:
        return [PlannedTensor(f"{layer.key}.weight", torch.int8, (N, K)), scale]
    planned = [
        PlannedTensor(f"{layer.key}.weight_packed", torch.int32, (N, -(-K // pack))),
        scale,
        PlannedTensor(f"{layer.key}.weight_shape", torch.int64, (2,)),
    ]
    if not scheme.symmetric:
        shape = (-(-N // pack), G)
        planned.append(PlannedTensor(f"{layer.key}.weight_zero_point", torch.int32, shape))
    return planned


def _write(
    checkpoint: Checkpoint,
    chosen: Chosen,
    writer: ShardWriter,
    search: bool,
    progress: Progress | None,
) -> list[QuantizedLayer]:
    """Round or copy every tensor."""
    uses: dict[str, list[tuple[LinearLayer, QuantizeScheme]]] = {}
    for layer, scheme in chosen.values():
        uses.setdefault(layer.weight.name, []).append((layer, scheme))
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    passed = 0
    done = []
    for tensor in _in_file_order(checkpoint):
        data = read_tensor(tensor)
        layers = uses.get(tensor.name, [])
        for layer, scheme in layers:
            try:
                rounded = round_weight(data, scheme, search=search)
            except ValueError as error:
                raise CheckpointError(f"{tensor.name} cannot be rounded: {error}") from None
            for name, part in rounded.tensors.items():
                writer.put(f"{layer.key}.{name}", part)
            shape = (tensor.shape[0], tensor.shape[1])
            done.append(QuantizedLayer(layer.name, str(scheme), shape, rounded.relative_error))
        if all(_is_tied(layer) for layer, _ in layers):
            writer.put(tensor.name, data)
        passed += tensor.nbytes
        if progress is not None:
            progress(passed, total, tensor.name)
    return done


# -- the config --------------------------------------------------------------------------------


def _quantization_config(
    scheme: QuantizeScheme,
    head_scheme: QuantizeScheme | None,
    layers: ModelLayers,
    chosen: Chosen,
    kept: Sequence[KeptLayer],
    search: bool,
) -> dict[str, Any]:
    """``quantization_config`` as compressed-tensors writes it."""
    ignored = {layer.name for layer in kept}
    if layers.head is not None and layers.head.name not in chosen:
        ignored.add(layers.head.name)
    parts = [(["Linear"], scheme)]
    if layers.head is not None and layers.head.name in chosen and head_scheme is not None:
        # Not every reader's head is a "Linear", so it is named. Names stand before classes:
        # compressed-tensors takes what comes after a match for a name that fits nothing.
        if head_scheme == scheme:
            parts = [([layers.head.name, "Linear"], scheme)]
        else:
            parts.insert(0, ([layers.head.name], head_scheme))
    groups = {
        f"group_{index}": part.config_group(targets, searched=search)
        for index, (targets, part) in enumerate(parts)
    }
    formats = {part.format for _, part in parts}
    return {
        "config_groups": groups,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": sorted(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": FORMAT_VERSION,
    }


def _config(
    config: Mapping[str, Any], quantization: dict[str, Any], layers: ModelLayers, chosen: Chosen
) -> dict[str, Any]:
    """The source's config with the quantization; untied if the head has its own weight now."""
    result = copy.deepcopy(dict(config))
    if layers.head is not None and layers.head.name in chosen:
        result["tie_word_embeddings"] = False
        text = result.get("text_config")
        if isinstance(text, dict) and "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    result["quantization_config"] = quantization
    return result


def _notes(layers: ModelLayers) -> Iterator[str]:
    if layers.absent:
        count = len(layers.absent)
        yield (
            f"the model has {count} linear layer{'s' if count > 1 else ''} without a weight in "
            f"the checkpoint: {', '.join(layers.absent[:3])}{' ...' if count > 3 else ''}"
        )


# -- the folder --------------------------------------------------------------------------------


def _check_dest(source: Path, dest: Path, overwrite: bool) -> None:
    here, there = source.resolve(), dest.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise CheckpointError(f"{dest}: source and destination must be separate folders")
    if not dest.parent.is_dir():
        raise CheckpointError(f"{dest.parent}: there is no such folder to write into")
    if not (dest.exists() or dest.is_symlink()):
        return
    if not dest.is_dir() or dest.is_symlink():
        raise CheckpointError(f"{dest}: it exists and is no folder")
    if not any(dest.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{dest}: it exists already (overwrite, --overwrite replaces it)")
    if not (dest / "config.json").is_file():
        raise CheckpointError(f"{dest}: it holds no config.json, so it is not replaced")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder.parent}: {size_text(needed)} are needed and {size_text(free)} are free"
        )


@contextmanager
def _appearing(dest: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``dest`` that takes its place at the end, or vanishes."""
    folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        if overwrite and dest.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{dest.name}-old-", dir=dest.parent))
            dest.rename(old / dest.name)
            try:
                folder.rename(dest)
            except BaseException:
                (old / dest.name).rename(dest)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            if dest.exists():
                dest.rmdir()  # it is empty, or this raises
            folder.rename(dest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
