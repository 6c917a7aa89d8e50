"""`quantize_checkpoint`: a float checkpoint in, one of compressed-tensors' formats out."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import qcore
from qcore.errors import CheckpointError
from qcore.models.checkpoint import Checkpoint
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.quantize.activation_scales import ActivationScales, check_scales
from qcore.quantize.choice import Choice, choose_layers
from qcore.quantize.config_groups import input_tensors, weight_tensors
from qcore.quantize.model_layers import LinearLayer, ModelLayers, find_layers
from qcore.quantize.report import QuantizedLayer, QuantizeReport, size_text
from qcore.quantize.rounding import round_weight
from qcore.quantize.scheme import QuantizeScheme
from qcore.quantize.source import companions, open_float_checkpoint
from qcore.quantize.writer import PlannedTensor, ShardWriter
from qcore.quantize.written_config import written_config

__all__ = ["MAX_SHARD_BYTES", "Progress", "quantize_checkpoint"]

MAX_SHARD_BYTES = 2_000_000_000
"""What one weight file holds at most, unless a single layer is larger."""

Progress = Callable[[int, int, str], None]
"""Called as ``progress(bytes done, bytes in all, name of the tensor)``, in bytes of the source."""


def quantize_checkpoint(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    scheme: str | QuantizeScheme = "int4-g128",
    lm_head: bool = False,
    lm_head_scheme: str | QuantizeScheme | None = None,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    search: bool = True,
    scales: ActivationScales | None = None,
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
        targets: the layers to round, besides the head; none for all. Names of modules, or ``re:``
            and a regular expression that fits the beginning of the name.
        ignore: layers to keep, in the same way.
        search: choose the scales of weights by the squared error, where that helps; else by the
            largest magnitude.
        scales: of activations, for a scheme that has calibrated ones; `calibrate` makes them.
        progress: called after every tensor.
        overwrite: replace ``dest`` if it is a checkpoint already.

    Raises:
        CheckpointError: the source cannot be quantized, or ``dest`` is in the way.
        ConfigError: a scheme cannot be read, a name fits no layer, or scales are missing.
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
    choice = choose_layers(
        find_layers(checkpoint), main, head_scheme, targets=targets, ignore=ignore
    )
    check_scales(((n, s) for n, (_, s) in choice.chosen.items()), scales, at_load=False)
    groups = _plan(checkpoint, choice)
    needed = sum(tensor.nbytes for group in groups for tensor in group)
    with _appearing(dest, overwrite) as folder:
        _check_space(folder, needed)
        metadata = {"format": "pt", "quantized_by": f"qcore {qcore.__version__}"}
        with ShardWriter(folder, groups, MAX_SHARD_BYTES, metadata) as writer:
            done = _write(checkpoint, choice, writer, search, scales, progress)
            writer.finish()
        observer = scales.observer if scales is not None else "minmax"
        config = written_config(checkpoint.config, choice, searched=search, observer=observer)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        for path in companions(source):
            shutil.copyfile(path, folder / path.name)
    return QuantizeReport(
        source=source,
        dest=dest,
        layers=tuple(done),
        kept=choice.kept,
        notes=tuple(_notes(choice.layers)),
        bytes_before=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        bytes_after=needed,
        shards=writer.shards,
        seconds=time.perf_counter() - started,
    )


# -- writing -----------------------------------------------------------------------------------


def _plan(checkpoint: Checkpoint, choice: Choice) -> list[list[PlannedTensor]]:
    """Every tensor of the result, those of a layer together, in the order of the source."""
    rounded = {i[0].weight.name: i for i in choice.chosen.values() if not i[0].is_tied}
    groups = []
    for tensor in _in_file_order(checkpoint):
        if tensor.name in rounded:
            groups.append(_planned(*rounded[tensor.name]))
        else:
            groups.append([PlannedTensor(tensor.name, tensor.dtype, tensor.shape)])
    head = choice.layers.head
    if head is not None and head.name in choice.chosen and head.is_tied:
        groups.append(_planned(*choice.chosen[head.name]))
    return groups


def _in_file_order(checkpoint: Checkpoint) -> list[TensorInfo]:
    return sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file, tensor.name))


def _planned(layer: LinearLayer, scheme: QuantizeScheme) -> list[PlannedTensor]:
    """The tensors of a rounded layer."""
    N, K = layer.weight.shape
    tensors = weight_tensors(scheme, N, K, layer.weight.dtype) | input_tensors(scheme)
    return [
        PlannedTensor(f"{layer.key}.{name}", dtype, shape)
        for name, (dtype, shape) in tensors.items()
    ]


def _write(
    checkpoint: Checkpoint,
    choice: Choice,
    writer: ShardWriter,
    search: bool,
    scales: ActivationScales | None,
    progress: Progress | None,
) -> list[QuantizedLayer]:
    """Round or copy every tensor."""
    uses: dict[str, list[tuple[LinearLayer, QuantizeScheme]]] = {}
    for layer, scheme in choice.chosen.values():
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
            inputs = {} if scales is None else scales.tensors(layer.name, scheme)
            for name, part in (rounded.tensors | inputs).items():
                writer.put(f"{layer.key}.{name}", part)
            shape = (tensor.shape[0], tensor.shape[1])
            done.append(QuantizedLayer(layer.name, str(scheme), shape, rounded.relative_error))
        if all(layer.is_tied for layer, _ in layers):
            writer.put(tensor.name, data)
        passed += tensor.nbytes
        if progress is not None:
            progress(passed, total, tensor.name)
    return done


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
