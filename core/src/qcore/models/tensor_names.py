"""What a model calls the tensors of a checkpoint, and which of its parameters share one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcore.errors import CheckpointError
from qcore.models.experts import EXPERT_LAYER
from qcore.models.safetensors_file import TensorInfo
from qcore.quantization.base import split_name

__all__ = ["in_base", "renamed_tensors", "tied_names"]


def in_base(model: Any, name: str) -> bool:
    """Whether a module is in the part of a model that all models of its family have."""
    base = model.base_model_prefix
    if hasattr(model, base):
        return name.startswith(f"{base}.")
    return hasattr(model, name.partition(".")[0])


def _with_base(model: Any, name: str) -> str:
    """A tensor's name, with the base model's prefix where this class has one, else without."""
    base = f"{model.base_model_prefix}."
    if not hasattr(model, model.base_model_prefix):
        return name.removeprefix(base)
    first = name.partition(".")[0]
    return name if hasattr(model, first) or name.startswith(base) else base + name


def renamed_tensors(
    model: Any, tensors: Mapping[str, TensorInfo], partial: bool
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors by the model's names, and the checkpoint's name of each renamed layer.

    transformers renames the tensors of some models while it loads them. Renaming is followed here;
    joining several tensors into one is not, but for experts (`qcore.models.experts`).
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return dict(tensors), {}
    renamed: dict[str, TensorInfo] = {}
    prefixes: dict[str, str] = {}
    try:
        steps = get_model_conversion_mapping(model, add_legacy=False)
    except Exception as error:  # it reads the config, which is the checkpoint's
        raise CheckpointError(
            f"config.json: transformers has no names for {type(model).__name__}'s tensors: {error}"
        ) from error
    for name, info in tensors.items():
        new = name
        for step in steps:
            changed, matched = step.rename_source_key(new)
            if matched is None:
                continue
            if not isinstance(step, WeightRenaming):
                if partial or EXPERT_LAYER.fullmatch(new.rpartition(".")[0]):
                    continue
                raise CheckpointError(
                    f"{name}: {type(model).__name__} of transformers joins such tensors into "
                    f"{changed}, which is not supported"
                )
            new = changed
        if partial:
            new = _with_base(model, new)
        if new in renamed:
            raise CheckpointError(f"{name} and {renamed[new].name} are both called {new}")
        renamed[new] = info
        if new != name:
            prefixes[split_name(new)[0]] = split_name(name)[0]
    return renamed, prefixes


def tied_names(model: Any) -> dict[str, tuple[str, ...]]:
    """Parameter names that share a tensor, or are going to: name -> all of its names."""
    sources: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        shared = parameters.get(sources.get(name, name), parameter)
        names.setdefault(id(shared), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}
