"""The experts of a mixture: transformers has them as one module, checkpoints as many linear layers.

A module of transformers holds all experts in two parameters, ``gate_up_proj`` [E, 2I, H] and
``down_proj`` [E, H, I]; checkpoints have ``experts.0.gate_proj`` and so on, or ``w1``, ``w3`` and
``w2``. Quantized ones are stacked and run by one kernel, plain ones are joined as they are. Some
methods store them stacked already (`FusedExpertsScheme`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.kernels.moe import gated
from qcore.layers.moe import EXPERT_ACTIVATIONS, ExpertsLayerConfig, MoeWNA16LayerConfig
from qcore.layers.params import ParamSpec
from qcore.models.safetensors_file import TensorInfo
from qcore.quantization.base import LinearScheme
from qcore.quantization.experts import experts_config
from qcore.quantization.fused_experts import FusedExpertsScheme

if TYPE_CHECKING:
    from qcore.models.plan import LinearPlan

__all__ = [
    "EXPERT_LAYER",
    "ROLES",
    "ExpertsPlan",
    "FusedExpertsPlan",
    "JoinedPlan",
    "plan_experts",
    "plan_fused_experts",
]

ROLES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What checkpoints call an expert's gate, up and down."""

EXPERT_LAYER = re.compile(
    r"(?P<experts>(?:.*\.)?experts)\.(?P<expert>\d+)\."
    rf"(?P<role>{'|'.join(name for names in ROLES for name in names)})"
)
"""Matches the name of an expert's layer."""


@dataclass(frozen=True)
class ExpertsPlan:
    """The quantized experts of one mixture layer.

    Attributes:
        prefix: the module's name in the model.
        hidden_size: H.
        intermediate_size: I.
        activation: of the gate.
        experts: gate, up and down of each expert.
    """

    prefix: str
    hidden_size: int
    intermediate_size: int
    activation: str
    experts: tuple[tuple[LinearPlan, LinearPlan, LinearPlan], ...]

    @property
    def scheme(self) -> LinearScheme:
        """How the checkpoint stores each layer of each expert."""
        return self.experts[0][0].scheme

    def layer_config(self, act_dtype: torch.dtype) -> MoeWNA16LayerConfig:
        """The experts as the method's config promises them.

        Raises:
            UnsupportedQuantizationError: no expert kernel takes such layers.
        """
        gate, _, down = (p.scheme.layer_config(p.K, p.N, act_dtype) for p in self.experts[0])
        try:
            return experts_config(len(self.experts), self.activation, gate, down)
        except UnsupportedQuantizationError as error:
            raise UnsupportedQuantizationError(f"{self.prefix}: {error}") from None


@dataclass(frozen=True)
class FusedExpertsPlan:
    """The quantized experts of one mixture layer, which the checkpoint holds stacked.

    Attributes:
        prefix: the module's name in the model.
        scheme: how the checkpoint stores them.
        sizes: (E, H, I).
        specs: what the checkpoint must have.
        tensors: what it has of these.
    """

    prefix: str
    scheme: FusedExpertsScheme
    sizes: tuple[int, int, int]
    specs: Mapping[str, ParamSpec]
    tensors: Mapping[str, TensorInfo]

    def layer_config(self, act_dtype: torch.dtype) -> ExpertsLayerConfig:
        """The experts."""
        return self.scheme.layer_config(*self.sizes, act_dtype)


@dataclass(frozen=True)
class JoinedPlan:
    """A parameter of plain experts.

    Attributes:
        name: in the model.
        experts: for each expert, the tensors that fill its rows one below the other, by the
            model's names.
    """

    name: str
    experts: tuple[Mapping[str, TensorInfo], ...]


def plan_experts(
    module: torch.nn.Module,
    prefix: str,
    owners: Iterable[str],
    available: Mapping[str, TensorInfo],
    plan_linear: Callable[[torch.nn.Module, str], LinearPlan | None],
) -> ExpertsPlan | list[JoinedPlan] | None:
    """Plan a module of experts.

    Args:
        module: any module of the model.
        prefix: its name.
        owners: the names of all layers of which the checkpoint has tensors.
        available: the checkpoint's tensors, by the model's names.
        plan_linear: plans a linear layer of that name; None where it is not quantized.

    Returns:
        None where the module holds no experts, or the checkpoint does not have them one by one.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the module.
        UnsupportedQuantizationError: the experts are of a kind that is not supported.
    """
    weights = _fused_weights(module)
    if weights is None:
        return None
    matches = (EXPERT_LAYER.fullmatch(owner) for owner in owners if owner.startswith(prefix))
    found = {m["role"] for m in matches if m is not None and m["experts"] == prefix}
    names = next((names for names in ROLES if found & set(names)), None)
    if names is None:
        return None
    activation = _activation(module)
    if activation is None:
        raise UnsupportedQuantizationError(
            f"{prefix}: {type(module).__name__} is not a gated MLP with {_or(EXPERT_ACTIVATIONS)} "
            "and nothing else; such experts are not supported"
        )
    gate_up, down = weights
    E, H, I = gate_up.shape[0], gate_up.shape[2], down.shape[2]  # noqa: E741
    shapes = ((H, I), (H, I), (I, H))
    planned: list[tuple[LinearPlan, ...]] = []
    for expert in range(E):
        layers = [
            plan_linear(_stand_in(K, N), f"{prefix}.{expert}.{name}")
            for name, (K, N) in zip(names, shapes, strict=True)
        ]
        planned.append(tuple(layer for layer in layers if layer is not None))
    count = sum(map(len, planned))
    if count == 0:
        return _join(prefix, names, shapes, E, available)
    schemes = {layer.scheme for layers in planned for layer in layers}
    if count < 3 * E or len(schemes) > 1:
        ways = [scheme.describe() for scheme in schemes] + ["not at all"] * (count < 3 * E)
        raise UnsupportedQuantizationError(
            f"{prefix}: the experts are quantized in different ways ({', '.join(sorted(ways))}); "
            "all layers of all experts must be quantized alike"
        )
    experts = tuple((gate, up, down) for gate, up, down in planned)
    return ExpertsPlan(prefix, H, I, activation, experts)


def _stand_in(K: int, N: int) -> torch.nn.Linear:
    return torch.nn.Linear(K, N, bias=False, device="meta")


def _fused_weights(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """gate_up_proj [E, 2I, H] and down_proj [E, H, I], if the module has such."""
    gate_up = module._parameters.get("gate_up_proj")
    down = module._parameters.get("down_proj")
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3:
        return None
    E, H, I = down.shape  # noqa: E741
    return (gate_up, down) if gate_up.shape == (E, 2 * I, H) else None


_PLAIN = {"is_transposed": False, "is_concatenated": True, "has_bias": False}
_OF_GPT_OSS = {"is_transposed": True, "is_concatenated": False, "has_bias": True}


def _activation(module: torch.nn.Module, marks: Mapping[str, bool] = _PLAIN) -> str | None:
    """How gate and up are joined; None where the experts are no gated MLPs of this kind.

    transformers marks how a module of experts computes, so that it can run them in several ways;
    a module without these marks may do anything.
    """
    marks = {**marks, "has_gate": True, "has_post_expert_norm": False}
    join = getattr(module, "_apply_gate", None)
    if not callable(join) or not hasattr(module, "is_transposed"):
        return None
    if any(getattr(module, name, value) != value for name, value in marks.items()):
        return None
    # What it is called differs; what it computes tells.
    gate = torch.linspace(-12.0, 12.0, 97).repeat(7, 1)
    up = torch.linspace(-10.5, 10.5, 7)[:, None].expand_as(gate)
    both = torch.cat((gate, up), -1)
    if not marks["is_concatenated"]:
        both = torch.stack((gate, up), -1).flatten(1)
    values = join(both)
    for name in EXPERT_ACTIVATIONS:
        if torch.allclose(values, gated(name)(gate, up), rtol=1e-6, atol=1e-5):
            return name
    return None


def plan_fused_experts(
    module: torch.nn.Module,
    prefix: str,
    scheme: FusedExpertsScheme,
    available: Mapping[str, TensorInfo],
) -> FusedExpertsPlan | None:
    """Plan a module of experts that a method may store stacked.

    Args:
        module: any module of the model.
        prefix: its name.
        scheme: what the method says of it.
        available: the checkpoint's tensors, by the model's names.

    Returns:
        None where the module holds no experts, or they are not quantized.

    Raises:
        UnsupportedQuantizationError: the experts are not of the kind that the scheme stores.
    """
    gate_up, down = (module._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3:
        return None
    if f"{prefix}.gate_up_proj" in available:
        return None
    E, I, H = down.shape  # noqa: E741
    if _activation(module, _OF_GPT_OSS) != scheme.activation or gate_up.shape != (E, H, 2 * I):
        raise UnsupportedQuantizationError(
            f"{prefix}: {type(module).__name__} does not compute as {scheme.describe()} do "
            f"(biases, gate and up in turn, {scheme.activation}), which is not supported"
        )
    try:
        specs = scheme.checkpoint_tensors(E, H, I)
    except UnsupportedQuantizationError as error:
        raise UnsupportedQuantizationError(f"{prefix}: {error}") from None
    found = {s: available[f"{prefix}.{s}"] for s in specs if f"{prefix}.{s}" in available}
    return FusedExpertsPlan(prefix, scheme, (E, H, I), specs, found)


def _join(
    prefix: str,
    names: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    num_experts: int,
    available: Mapping[str, TensorInfo],
) -> list[JoinedPlan]:
    def tensor(expert: int, role: int) -> tuple[str, TensorInfo]:
        name, (K, N) = f"{prefix}.{expert}.{names[role]}.weight", shapes[role]
        info = available.get(name)
        if info is None:
            raise CheckpointError(f"{name} is missing; the model has {num_experts} experts")
        if info.shape != (N, K) or not info.dtype.is_floating_point:
            raise CheckpointError(f"{info.file}: {info}; the model needs floats [{N}, {K}]")
        return name, info

    return [
        JoinedPlan(
            f"{prefix}.{name}",
            tuple(dict(tensor(expert, role) for role in roles) for expert in range(num_experts)),
        )
        for name, roles in (("gate_up_proj", (0, 1)), ("down_proj", (2,)))
    ]


def _or(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"
