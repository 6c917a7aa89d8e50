"""`ModelLayers`: which tensors of a checkpoint are linear layers; asked of the model itself.

The model is built by transformers without weights, so it takes no memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcore.errors import CheckpointError
from qcore.layers.params import FLOAT_DTYPES
from qcore.models.checkpoint import Checkpoint
from qcore.models.safetensors_file import TensorInfo
from qcore.models.skeleton import build_skeleton

__all__ = ["LinearLayer", "ModelLayers", "find_layers"]


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer that the checkpoint has a weight for.

    Attributes:
        name: of the module.
        key: the prefix of its tensors: the module's name as the checkpoint spells it.
        weight: its weight (of the embedding, for a head that is tied to it).
    """

    name: str
    key: str
    weight: TensorInfo

    @property
    def is_tied(self) -> bool:
        """Whether its weight is that of another layer."""
        return self.weight.name != f"{self.key}.weight"


@dataclass(frozen=True)
class ModelLayers:
    """What of a checkpoint can be quantized.

    Attributes:
        linear: every linear layer but the head.
        head: the layer that makes the logits, if it is a linear one.
        tied: whether the head has no weight of its own.
        strangers: 2-D weights of no module: experts that the model holds in stacked form.
        absent: linear layers that the checkpoint has no weight for.
    """

    linear: tuple[LinearLayer, ...]
    head: LinearLayer | None
    tied: bool
    strangers: tuple[str, ...]
    absent: tuple[str, ...]


def find_layers(source: Checkpoint) -> ModelLayers:
    """Build the model and look its linear layers up in the checkpoint.

    Raises:
        CheckpointError: transformers does not know the model, or the two do not fit together.
        MissingDependencyError: transformers is not installed.
    """
    model = build_skeleton(source.config, torch.float32, source.tensors)
    modules: dict[str, torch.nn.Module] = dict(model.named_modules())
    head_name = _name_of(modules, model.get_output_embeddings())
    embedding = _name_of(modules, model.get_input_embeddings())
    base = str(getattr(model, "base_model_prefix", "") or "")
    spelling = _spelling(source, set(modules), base)

    linear, absent = [], []
    head = None
    tied = False
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Linear):
            continue
        key = spelling.get(name, name)
        weight = source.tensors.get(f"{key}.weight")
        if name == head_name and weight is None and embedding is not None:
            weight = source.tensors.get(f"{spelling.get(embedding, embedding)}.weight")
            tied = weight is not None
        if weight is None:
            absent.append(name)
            continue
        _check(weight, module, name)
        layer = LinearLayer(name, key, weight)
        if name == head_name:
            head = layer
        else:
            linear.append(layer)
    if not linear:
        example = next(iter(source.tensors))
        raise CheckpointError(
            f"{source.path}: none of its tensors is a linear layer of {type(model).__name__}; "
            f"they are called {example!r} and the like"
        )
    known = {spelling.get(name, name) for name in modules}
    strangers = sorted(
        key
        for tensor in source.tensors.values()
        if tensor.name.endswith(".weight")
        and len(tensor.shape) == 2
        and (key := tensor.name.removesuffix(".weight")) not in known
    )
    return ModelLayers(tuple(linear), head, tied, tuple(strangers), tuple(absent))


def _name_of(modules: dict[str, torch.nn.Module], wanted: object) -> str | None:
    return next((name for name, module in modules.items() if module is wanted), None)


def _spelling(source: Checkpoint, modules: set[str], base: str) -> dict[str, str]:
    """Module -> its name in the checkpoint, where that lacks the base model's prefix."""
    if not base or base not in modules:
        return {}
    if any(name.startswith(f"{base}.") for name in source.tensors):
        return {}
    return {name: name.removeprefix(f"{base}.") for name in modules if name.startswith(f"{base}.")}


def _check(weight: TensorInfo, module: torch.nn.Linear, name: str) -> None:
    if weight.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{weight.name} is {str(weight.dtype).removeprefix('torch.')}: it is quantized "
            "already, or in a dtype that is not rounded; allowed: float32, float16, bfloat16"
        )
    if weight.shape != (module.out_features, module.in_features):
        raise CheckpointError(
            f"{weight.name} has shape {list(weight.shape)}; the model's {name} needs "
            f"[{module.out_features}, {module.in_features}]"
        )
