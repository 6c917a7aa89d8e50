"""What `save_pretrained` writes: the checkpoint's own tensors, and what the user has changed.

A kernel's layout is no checkpoint's, so a quantized layer is copied from the files that it was
loaded from, once packing it again has shown that it is still what they hold.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import safetensors
import torch
from packaging.version import Version

from qcore.errors import WeightError
from qcore.models.plan import LoadPlan, PlannedLayer
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.quantization.kernel_layer import KernelLayer
from qcore.transformers.source import Source

__all__ = ["tensors_to_save"]

Pack = Callable[[PlannedLayer], KernelLayer]

# Older versions write over a file in place: fatal to a mapping, if it is the source.
_MAPPING_IS_SAFE = Version(safetensors.__version__) >= Version("0.8")


def tensors_to_save(
    model: Any, source: Source, plan: LoadPlan, pack: Pack
) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors by its names, and the model's that it does not have.

    Args:
        model: a loaded model.
        source: the files that it was loaded from.
        plan: by which it was loaded.
        pack: loads one layer again.

    Raises:
        CheckpointError: the files are gone, or not the same.
        WeightError: a quantized layer was changed after loading.
    """
    source.check_unchanged()
    for layer in plan.layers:
        _check_unchanged(model.get_submodule(layer.prefix), pack(layer))
    found = {info.name: _mapped(info) for info in source.checkpoint.tensors.values()}
    found.update(_changed(model, plan))
    return found


def _check_unchanged(module: torch.nn.Module, again: KernelLayer) -> None:
    now, before = dict(_held(module)), dict(_held(again))
    same = isinstance(module, KernelLayer) and type(module.kernel) is type(again.kernel)
    if not same or now.keys() != before.keys() or not all(_equal(now[n], before[n]) for n in now):
        raise WeightError(
            f"{again.prefix}: no longer what the checkpoint holds, and a layer in its kernel's "
            "layout cannot be written back. Save the model as it was loaded, or quantize the "
            "changed float model again"
        )


def _held(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are the same bits (float8 and NaN compare too)."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _changed(model: Any, plan: LoadPlan) -> dict[str, torch.Tensor]:
    """Parameters that are not quantized: changed ones, and those that the checkpoint lacks."""
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, str] = {}
    joined = {joined.name: joined for joined in plan.joined}
    for name, tensor in _plain(model):
        info = plan.named.get(name)
        if tensor.is_meta:  # offloaded by transformers, so nobody could change it
            continue
        if info is not None:
            if not _equal(tensor, read_tensor(info).to(tensor.dtype)):
                found[info.name] = tensor.detach().cpu()
            seen[id(tensor)] = name
        elif name in joined:
            for rows, infos in zip(tensor, joined[name].experts, strict=True):
                parts = rows.split([one.shape[0] for one in infos.values()])
                for part, one in zip(parts, infos.values(), strict=True):
                    if not _equal(part, read_tensor(one).to(part.dtype)):
                        found[one.name] = part.detach().cpu().clone()
    for name, tensor in _plain(model):
        known = name in plan.named or name in joined or id(tensor) in seen
        if not known and not tensor.is_meta:
            found[name] = tensor.detach().cpu()
    return found


def _plain(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers of what is not quantized, under all of their names."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, KernelLayer):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), tensor


def _mapped(info: TensorInfo) -> torch.Tensor:
    """The tensor, mapped from its file, so that saving need not hold the checkpoint in memory."""
    if not _MAPPING_IS_SAFE or info.nbytes == 0:
        return read_tensor(info)
    start = info.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    skipped = info.offset - start
    with info.file.open("rb") as stream:
        pages = mmap.mmap(
            stream.fileno(), skipped + info.nbytes, access=mmap.ACCESS_COPY, offset=start
        )
    data = torch.frombuffer(pages, dtype=torch.uint8, count=info.nbytes, offset=skipped)
    return info.decode(data)
