"""`LoadPlan`: which tensor of the checkpoint goes where, checked before any is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.models.checkpoint import Checkpoint
from qcore.models.experts import (
    ExpertsPlan,
    FusedExpertsPlan,
    JoinedPlan,
    plan_experts,
    plan_fused_experts,
)
from qcore.models.kv_scales import KVScalePlan, plan_kv_scales
from qcore.models.safetensors_file import TensorInfo, same_bytes, same_place
from qcore.models.tensor_names import in_base, renamed_tensors, tied_names
from qcore.quantization.base import LinearScheme, QuantizationConfig, split_name
from qcore.quantization.fused_experts import FusedExpertsScheme

__all__ = ["LinearPlan", "LoadPlan", "PlannedLayer", "check_tensors", "make_plan", "set_aside"]

_FLOATS = (*FLOAT_DTYPES, torch.float64)
_BIAS = "bias"
_SHOWN = 6
_FOR_FP8_CACHE = "are those of an FP8 KV cache: qcore.models.fp8_cache(model) takes them"


@dataclass(frozen=True)
class LinearPlan:
    """A quantized layer.

    Attributes:
        prefix: its name in the model.
        scheme: how the checkpoint stores it.
        K: inputs.
        N: outputs.
        tensors: the checkpoint's tensors, by the name that the scheme gives them.
        bias: the bias, if there is one.
        has_bias: whether the model's layer has one.
    """

    prefix: str
    scheme: LinearScheme
    K: int
    N: int
    tensors: Mapping[str, TensorInfo]
    bias: TensorInfo | None = None
    has_bias: bool = False


PlannedLayer: TypeAlias = LinearPlan | ExpertsPlan | FusedExpertsPlan
"""What becomes one layer with a kernel."""


@dataclass
class LoadPlan:
    """Where everything goes.

    Attributes:
        linears: the quantized layers, in the model's order.
        experts: the quantized experts of mixtures.
        joined: the parameters of experts that are not quantized.
        parameters: (the model's names for it, tensor) for each other parameter and buffer.
        untied: parameters that the config ties and the checkpoint does not.
        notes: what the user should know.
        kv_scales: the scales of the KV cache; None if the method knows of none.
        named: every tensor of the checkpoint, by the model's name for it.
        unexpected: names of tensors that nobody knows; of a part of a model only.
    """

    linears: list[LinearPlan] = field(default_factory=list)
    experts: list[ExpertsPlan | FusedExpertsPlan] = field(default_factory=list)
    joined: list[JoinedPlan] = field(default_factory=list)
    parameters: list[tuple[tuple[str, ...], TensorInfo]] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kv_scales: KVScalePlan | None = None
    named: Mapping[str, TensorInfo] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    @property
    def layers(self) -> tuple[PlannedLayer, ...]:
        """Everything that gets a kernel."""
        return (*self.linears, *self.experts)


def make_plan(model: Any, checkpoint: Checkpoint, *, partial: bool = False) -> LoadPlan:
    """Match the checkpoint's tensors with the model's.

    Args:
        model: with its parameters on the meta device.
        checkpoint: its headers.
        partial: the model may be another class than the checkpoint's: without its head, with
            another one, or with one more prefix. What is not quantized may then be missing, and
            tensors may be left.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or has another shape or dtype than the
            model or the quantization config says.
    """
    available, file_prefixes = renamed_tensors(model, checkpoint.tensors, partial)
    plan = LoadPlan(named=available)
    used: set[str] = set()
    tied = tied_names(model)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in available.items():
        owner, suffix = split_name(name)
        shapes.setdefault(owner, {})[suffix] = info.shape

    def plan_linear(module: torch.nn.Module, prefix: str) -> LinearPlan | None:
        if partial and prefix not in shapes and not in_base(model, prefix):
            return None
        return _plan_linear(module, prefix, checkpoint, available, file_prefixes, shapes, tied)

    for prefix, module in model.named_modules():
        experts = plan_experts(module, prefix, shapes, available, plan_linear)
        if experts is not None:
            used.update(_take_experts(plan, experts))
        elif (
            fused := _plan_fused(module, prefix, checkpoint, available, file_prefixes)
        ) is not None:
            plan.experts.append(fused)
            used.update(f"{prefix}.{suffix}" for suffix in fused.tensors)
        linear = plan_linear(module, prefix)
        if linear is not None:
            plan.linears.append(linear)
            used.update(f"{prefix}.{suffix}" for suffix in linear.tensors)
            if linear.bias is not None:
                used.add(f"{prefix}.{_BIAS}")
            weight = f"{prefix}.weight"
            if weight in tied:
                plan.untied.append(weight)
                others = [name for name in tied[weight] if name != weight]
                if not any(_is_read_twice(linear, available.get(name)) for name in others):
                    plan.notes.append(
                        f"{prefix} is quantized in the checkpoint, so it is not tied to "
                        + ", ".join(others)
                    )
    planned = {linear.prefix for linear in plan.linears}
    planned |= {experts.prefix for experts in plan.experts}
    planned |= {joined.name.rpartition(".")[0] for joined in plan.joined}
    missing = _plan_parameters(model, available, planned, plan, used)
    left = [name for name in available if name not in used and not _is_ignorable(model, name)]
    method = checkpoint.quantization
    unexpected, notes = (left, []) if method is None else set_aside(method, left)
    if partial:
        plan.unexpected = unexpected
        missing = [name for name in missing if in_base(model, name)]
        unexpected = [n for n in unexpected if in_base(model, n) and not _is_plain(available[n])]
        if unexpected:
            raise CheckpointError(_mismatch(checkpoint, missing, unexpected))
    elif missing or unexpected:
        raise CheckpointError(_mismatch(checkpoint, missing, unexpected))
    plan.notes += notes
    kv_method = None if method is None else method.get_kv_cache_method()
    if kv_method is not None:
        plan.kv_scales = plan_kv_scales(model, kv_method, available, left)
        if plan.kv_scales.unplaced:
            unplaced = plan.kv_scales.unplaced
            raise CheckpointError(
                f"{checkpoint.path}: {unplaced[0]} is a scale of a KV cache, but the model has no "
                f"such layer ({len(unplaced)} of them)"
            )
    if checkpoint.quantization is not None and not (plan.linears or plan.experts):
        raise CheckpointError(
            f"{checkpoint.path}: the quantization config says {checkpoint.quantization.describe()},"
            " but no layer is stored so; take the quantization config away to load it as it is"
        )
    return plan


def _is_read_twice(linear: LinearPlan, other: TensorInfo | None) -> bool:
    """Whether the layer is tied all the same: its tensors are those of ``other``."""
    return other is not None and any(same_place(i, other) for i in linear.tensors.values())


def _take_experts(plan: LoadPlan, experts: ExpertsPlan | list[JoinedPlan]) -> Iterable[str]:
    """Add experts to the plan; returns the model's names of the tensors that they use."""
    if isinstance(experts, ExpertsPlan):
        plan.experts.append(experts)
        for linears in experts.experts:
            for linear in linears:
                yield from (f"{linear.prefix}.{suffix}" for suffix in (*linear.tensors, _BIAS))
        return
    plan.joined += experts
    for joined in experts:
        for tensors in joined.experts:
            yield from tensors


def _plan_fused(
    module: torch.nn.Module,
    prefix: str,
    checkpoint: Checkpoint,
    available: Mapping[str, TensorInfo],
    file_prefixes: Mapping[str, str],
) -> FusedExpertsPlan | None:
    """Plan experts that the checkpoint holds stacked, and check their tensors."""
    if checkpoint.quantization is None:
        return None
    scheme = checkpoint.quantization.get_experts_scheme(file_prefixes.get(prefix, prefix))
    if scheme is None:
        return None
    fused = plan_fused_experts(module, prefix, scheme, available)
    if fused is not None:
        check_tensors(prefix, scheme, fused.specs, fused.tensors)
    return fused


def set_aside(method: QuantizationConfig, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part the tensors that no layer takes into those that nobody knows, and the others.

    Args:
        method: of the checkpoint.
        names: of the tensors.

    Returns:
        The names that the method does not know, and notes about what is not applied.
    """
    unknown: list[str] = []
    scales: list[str] = []
    known: dict[str, list[str]] = {}
    kv_cache = method.get_kv_cache_method()
    for name in names:
        if kv_cache is not None and kv_cache.scale_of(name) is not None:
            scales.append(name)
            continue
        what = method.unapplied(name)
        (unknown if what is None else known.setdefault(what, [])).append(name)
    notes = [
        f"{len(found)} tensors are not applied, {found[0]} among them: {what}"
        for what, found in known.items()
    ]
    if scales:
        notes.insert(0, f"{len(scales)} scales, {scales[0]} among them, {_FOR_FP8_CACHE}")
    return unknown, [*method.notes(), *notes]


def _is_plain(info: TensorInfo) -> bool:
    """Whether a tensor may be a parameter that is not quantized."""
    return info.dtype in _FLOATS and split_name(info.name)[1] in ("weight", _BIAS)


# -- quantized layers --------------------------------------------------------------------------


def _plan_linear(
    module: torch.nn.Module,
    prefix: str,
    checkpoint: Checkpoint,
    available: Mapping[str, TensorInfo],
    file_prefixes: Mapping[str, str],
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    tied: Mapping[str, tuple[str, ...]],
) -> LinearPlan | None:
    method = checkpoint.quantization
    # Children of Linear may compute something else, so only the class itself is replaced.
    if method is None or type(module) is not torch.nn.Linear:
        return None
    scheme = method.get_quant_method(module, file_prefixes.get(prefix, prefix))
    if scheme is None:
        return None
    weight = available.get(f"{prefix}.weight")
    # auto-round leaves lm_head out of the layers to ignore, though it does not quantize it.
    alone = shapes.get(prefix, {}).keys() <= {"weight", _BIAS}
    plain = weight is not None and weight.dtype in _FLOATS and not method.rounds_floats
    if plain and (alone or not method.names_layers):
        return None
    if f"{prefix}.weight" in tied and not any(n.startswith(f"{prefix}.") for n in available):
        other = method.tied_weights().get(file_prefixes.get(prefix, prefix))
        if other is None:
            return None
        available = {**available, f"{prefix}.weight": checkpoint.tensors[other]}
    K, N = module.in_features, module.out_features
    scheme = scheme.refined(shapes.get(prefix, {})).stored_as(
        {s: available[f"{prefix}.{s}"].dtype for s in shapes.get(prefix, {})}
    )
    try:
        specs = scheme.checkpoint_tensors(K, N)
    except UnsupportedQuantizationError as error:
        raise UnsupportedQuantizationError(f"{prefix}: {error}") from None
    found = {s: available[f"{prefix}.{s}"] for s in specs if f"{prefix}.{s}" in available}
    if not found and weight is None:
        hint = _prefix_hint([f"{prefix}.{next(iter(specs))}"], list(available))
        if hint is not None:
            raise CheckpointError(f"{prefix} is missing; {hint}")
    check_tensors(prefix, scheme, specs, found, plain=weight)
    bias = available.get(f"{prefix}.{_BIAS}")
    has_bias = module.bias is not None
    if has_bias and bias is None:
        raise CheckpointError(f"{prefix}.{_BIAS} is missing; {type(module).__name__} has one")
    if bias is not None and (bias.shape != (N,) or bias.dtype not in _FLOATS):
        raise CheckpointError(f"{bias.file}: {bias}; this layer needs a float bias [{N}]")
    return LinearPlan(prefix, scheme, K, N, found, bias, has_bias)


def check_tensors(
    prefix: str,
    scheme: LinearScheme | FusedExpertsScheme,
    specs: Mapping[str, ParamSpec],
    found: Mapping[str, TensorInfo],
    plain: TensorInfo | None = None,
) -> None:
    """Check a quantized layer's tensors, from their headers.

    Args:
        prefix: the layer's name.
        scheme: of the layer.
        specs: what the scheme needs.
        found: what there is.
        plain: the layer's tensor called ``weight``, if there is one.

    Raises:
        CheckpointError: one is missing or has another dtype or shape; the message names it.
    """
    says = f"the config says {scheme.describe()}"
    for suffix, spec in specs.items():
        info = found.get(suffix)
        name = f"{prefix}.{suffix}"
        if info is None:
            if spec.optional:
                continue
            instead = f"; the checkpoint has {plain}" if plain is not None else ""
            raise CheckpointError(f"{name} ({spec.about}) is missing: {says}{instead}")
        if info.dtype not in spec.dtypes:
            needed = " or ".join(str(d).removeprefix("torch.") for d in spec.dtypes)
            given = str(info.dtype).removeprefix("torch.")
            raise CheckpointError(f"{info.file}: {name} is {given}, needed is {needed}: {says}")
        if not spec.fits(info.shape):
            raise CheckpointError(
                f"{info.file}: {name} has shape {list(info.shape)}, needed is "
                f"{spec.describe_shape()}: {says}"
            )


# -- the rest ----------------------------------------------------------------------------------


def _plan_parameters(
    model: Any,
    available: Mapping[str, TensorInfo],
    planned: set[str],
    plan: LoadPlan,
    used: set[str],
) -> list[str]:
    """Plan what is in no layer of ``planned``; returns the names that are missing."""
    missing = []
    groups: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in _named_tensors(model):
        if name.rpartition(".")[0] not in planned:
            groups.setdefault(id(tensor), (tensor, []))[1].append(name)
    for tensor, names in groups.values():
        present = [name for name in names if name in available]
        used.update(present)
        if not present:
            missing.append(names[0])
            continue
        for name in present:
            _check_plain(name, tensor, available[name])
        first = available[present[0]]
        if all(same_bytes(first, available[name]) for name in present[1:]):
            plan.parameters.append((tuple(names), first))
            continue
        plan.notes.append(
            f"{' and '.join(present)} are tied by the config but differ in the checkpoint; "
            "they are loaded as they are, untied"
        )
        lost = tuple(name for name in names if name not in present)
        plan.parameters.append(((present[0], *lost), first))
        plan.parameters += [((name,), available[name]) for name in present[1:]]
        plan.untied += present[1:]
    return missing


def _named_tensors(model: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that checkpoints hold."""
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def _check_plain(name: str, needed: torch.Tensor, info: TensorInfo) -> None:
    if info.shape != tuple(needed.shape):
        raise CheckpointError(
            f"{info.file}: {name} has shape {list(info.shape)}, the model needs "
            f"{list(needed.shape)}; config.json and weights are not of one model, or the layer is "
            "quantized and the config does not say so"
        )
    alike = info.dtype in _FLOATS if needed.is_floating_point() else info.dtype == needed.dtype
    if not alike:
        given = str(info.dtype).removeprefix("torch.")
        kind = "a float" if needed.is_floating_point() else str(needed.dtype)
        raise CheckpointError(
            f"{info.file}: {name} is {given}, the model needs {kind}; if the layer is quantized, "
            "the quantization config does not say so"
        )


def _is_ignorable(model: Any, name: str) -> bool:
    """Tensors that old versions saved and the model computes, or that its class ignores."""
    patterns = {r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.attn\.(masked_)?bias$"}
    patterns |= set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return any(re.search(pattern, name) for pattern in patterns)


def _mismatch(checkpoint: Checkpoint, missing: list[str], unexpected: list[str]) -> str:
    lines = [f"{checkpoint.path}: the tensors are not those of this model"]
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}")
    hint = _prefix_hint(missing, unexpected)
    if hint is None and missing and unexpected:
        shared = {n.rpartition(".")[0] for n in missing} & {
            n.rpartition(".")[0] for n in unexpected
        }
        if shared:
            method = checkpoint.quantization
            says = f"it says {method.describe()}" if method else "there is none"
            hint = f"{min(shared)} seems quantized in a way that the quantization config is silent "
            hint += f"about ({says})"
    return "; ".join([*lines, hint] if hint else lines)


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str | None:
    """Say so where the names differ in their beginning only."""

    def ending_of(name: str) -> str:
        """From the layer's number on."""
        return ".".join(name.split(".")[-6 if ".experts." in name else -4 :])

    by_ending = {ending_of(name): name for name in unexpected}
    for ours in missing:
        ending = ending_of(ours)
        theirs = by_ending.get(ending)
        if theirs is not None and ending.count(".") >= 2:
            return (
                f"the checkpoint says {theirs!r} where the model says {ours!r}: it was saved from "
                "another class than the one that config.json names"
            )
    return None
