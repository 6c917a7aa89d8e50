"""`inspect_checkpoint`: what a checkpoint holds, and which kernels would run it on any machine.

Only configs and headers are read, and the few bytes in which some formats state a shape.
transformers is not needed: the layers are those that the tensors show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qcore.errors import (
    CheckpointError,
    NoKernelError,
    UnsupportedQuantizationError,
    WeightError,
)
from qcore.facts.target import Target
from qcore.models.checkpoint import Checkpoint, open_checkpoint
from qcore.models.explanation import Explanation, ExplanationRow
from qcore.models.found_layers import FoundLayer, group_experts
from qcore.models.plan import check_tensors, set_aside
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.models.skeleton import model_dtype
from qcore.quantization.base import LinearScheme, split_name
from qcore.quantization.fused_experts import FusedExpertsScheme
from qcore.quantize.online import OnlineOptions, quantized_at_load
from qcore.quantize.scheme import QuantizeScheme
from qcore.selection.algorithm import select
from qcore.selection.decision import Decision
from qcore.settings import Settings

__all__ = ["CheckpointReport", "LayerReport", "inspect_checkpoint"]


_MAX_STATED = 1 << 16
_STATING = (torch.uint8, torch.int32, torch.int64)


@dataclass(frozen=True)
class LayerReport:
    """A quantized layer of a checkpoint; all experts of a mixture are one.

    Attributes:
        layer: its name.
        scheme: how it is stored, in a few words.
        K: inputs.
        N: outputs.
        nbytes: that its tensors take.
        decision: the kernel on the target.
    """

    layer: str
    scheme: str
    K: int
    N: int
    nbytes: int
    decision: Decision


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint holds.

    Attributes:
        path: the folder or the file.
        architecture: the model's class, if ``config.json`` names one.
        method: the quantization method; None if nothing is quantized.
        description: the method with its parameters.
        dtype: of the activations that the decisions are for.
        target: the machine that they are for.
        layers: the quantized layers.
        quantized_bytes: that these take on disk.
        other_bytes: that the rest takes.
        tensors: how many there are.
        notes: what the checkpoint asks for and is not done.
    """

    path: str
    architecture: str | None
    method: str | None
    description: str
    dtype: torch.dtype
    target: Target
    layers: tuple[LayerReport, ...]
    quantized_bytes: int
    other_bytes: int
    tensors: int
    notes: tuple[str, ...] = ()

    @property
    def explanation(self) -> Explanation:
        """The decisions, as `qcore.explain` shows them."""
        rows = tuple(ExplanationRow(r.layer, r.decision) for r in self.layers)
        return Explanation(rows, self.notes)

    def render(self, *, per_layer: bool = False) -> str:
        """The report, as text for a person.

        Args:
            per_layer: give each layer a line.
        """
        total = self.quantized_bytes + self.other_bytes
        lines = [
            f"checkpoint:    {self.path}",
            f"architecture:  {self.architecture or 'not stated'}",
            f"quantization:  {self.method or 'none'}"
            + (f" ({self.description})" if self.description not in ("", self.method) else ""),
            f"on disk:       {_size(total)} in {self.tensors} tensors: "
            f"{_size(self.quantized_bytes)} in {len(self.layers)} quantized layers, "
            f"{_size(self.other_bytes)} in the rest",
            f"decided for:   {self.target}, {str(self.dtype).removeprefix('torch.')} activations",
        ]
        if self.layers or self.notes:
            lines += ["", self.explanation.render(per_layer=per_layer)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "architecture": self.architecture,
            "method": self.method,
            "description": self.description,
            "dtype": str(self.dtype).removeprefix("torch."),
            "target": str(self.target),
            "tensors": self.tensors,
            "quantized_bytes": self.quantized_bytes,
            "other_bytes": self.other_bytes,
            "notes": list(self.notes),
            "layers": [
                {
                    "layer": row.layer,
                    "scheme": row.scheme,
                    "in_features": row.K,
                    "out_features": row.N,
                    "nbytes": row.nbytes,
                    "decision": row.decision.to_dict(),
                }
                for row in self.layers
            ],
        }


def inspect_checkpoint(
    path: str | os.PathLike[str],
    *,
    target: Target | str | None = None,
    settings: Settings | None = None,
    dtype: torch.dtype | None = None,
    gguf_file: str | None = None,
    quantize: str | QuantizeScheme | None = None,
    lm_head_scheme: str | QuantizeScheme | None = None,
) -> CheckpointReport:
    """Read a checkpoint's configs and headers, and decide for a machine.

    Args:
        path: a Hugging Face folder, or a GGUF file.
        target: the machine; None for this one.
        settings: for selection; None to read the environment.
        dtype: of the activations; None for what `load_model` would take.
        gguf_file: the name of the GGUF file, where ``path`` is a folder with several.
        quantize: show a float checkpoint as `load_model` would make it with the same argument; this
            builds the model and so needs transformers.
        lm_head_scheme: with ``quantize``, as there.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or contradictory.
        ConfigError: ``quantize`` cannot be read.
        UnknownQuantizationError: its quantization method is not known.
        UnsupportedQuantizationError: the method, or its parameters, are not supported.
    """
    target = Target.current() if target is None else Target.parse(target)
    checkpoint = quantized_at_load(
        open_checkpoint(path, gguf_file), quantize, OnlineOptions(lm_head_scheme), to_run=False
    )
    if dtype is None:
        dtype = model_dtype(checkpoint.config, target.torch_device.type)
    activation = checkpoint.config.get("hidden_act", "silu")
    layers = tuple(
        _report(layer, target, settings)
        for layer in group_experts(_quantized_layers(checkpoint, dtype), str(activation))
    )
    # A GGUF file's tied output is its embedding: two tensors, the same bytes.
    places = {(info.file, info.offset): info.nbytes for info in checkpoint.tensors.values()}
    total = sum(places.values())
    quantized = min(sum(layer.nbytes for layer in layers), total)
    method = checkpoint.quantization
    names = checkpoint.config.get("architectures")
    return CheckpointReport(
        path=str(checkpoint.path),
        architecture=str(names[0]) if isinstance(names, list) and names else None,
        method=method.get_name() if method else None,
        description=method.describe() if method else "",
        dtype=dtype,
        target=target,
        layers=layers,
        quantized_bytes=quantized,
        other_bytes=total - quantized,
        tensors=len(checkpoint.tensors),
        notes=() if method is None else tuple(set_aside(method, checkpoint.tensors)[1]),
    )


def _quantized_layers(checkpoint: Checkpoint, dtype: torch.dtype) -> list[FoundLayer]:
    """The layers whose tensors are those of their scheme."""
    method = checkpoint.quantization
    if method is None:
        return []
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        prefix, suffix = split_name(name)
        modules.setdefault(prefix, {})[suffix] = info
    for layer, other in method.tied_weights().items():
        modules.setdefault(layer, {})["weight"] = checkpoint.tensors[other]
    stand_in = torch.nn.Linear(1, 1, device="meta")
    layers: list[FoundLayer] = []
    for prefix in sorted(modules, key=_natural):
        tensors = modules[prefix]
        shapes = {suffix: info.shape for suffix, info in tensors.items()}
        experts = method.get_experts_scheme(prefix)
        sizes = None if experts is None else experts.infer_shape(shapes)
        if experts is not None and sizes is not None:
            layers.append(_fused_experts(prefix, experts, sizes, tensors, dtype))
            continue
        scheme = method.get_quant_method(stand_in, prefix)
        if scheme is None:
            continue
        dtypes = {suffix: info.dtype for suffix, info in tensors.items()}
        scheme = scheme.refined(shapes).stored_as(dtypes)
        shape = scheme.infer_shape(shapes) or _stated_shape(prefix, scheme, tensors)
        if shape is None:
            continue
        K, N = shape
        try:
            specs = scheme.checkpoint_tensors(K, N)
        except UnsupportedQuantizationError as error:
            raise UnsupportedQuantizationError(f"{prefix}: {error}") from None
        found = {suffix: info for suffix, info in tensors.items() if suffix in specs}
        check_tensors(prefix, scheme, specs, found)
        nbytes = sum(info.nbytes for info in found.values())
        config = scheme.layer_config(K, N, dtype)
        layers.append(FoundLayer(prefix, scheme.describe(), config, K, N, nbytes))
    return layers


def _fused_experts(
    prefix: str,
    scheme: FusedExpertsScheme,
    sizes: tuple[int, int, int],
    tensors: Mapping[str, TensorInfo],
    dtype: torch.dtype,
) -> FoundLayer:
    try:
        specs = scheme.checkpoint_tensors(*sizes)
    except UnsupportedQuantizationError as error:
        raise UnsupportedQuantizationError(f"{prefix}: {error}") from None
    found = {suffix: info for suffix, info in tensors.items() if suffix in specs}
    check_tensors(prefix, scheme, specs, found)
    nbytes = sum(info.nbytes for info in found.values())
    H = sizes[1]
    config = scheme.layer_config(*sizes, dtype)
    return FoundLayer(prefix, scheme.describe(), config, H, H, nbytes)


def _stated_shape(
    prefix: str, scheme: LinearScheme, tensors: Mapping[str, TensorInfo]
) -> tuple[int, int] | None:
    """(K, N) where a tensor says so; the one thing that is read besides the headers."""
    name = scheme.shape_tensor({suffix: info.shape for suffix, info in tensors.items()})
    if name is None:
        return None
    info = tensors[name]
    if info.nbytes > _MAX_STATED:
        raise CheckpointError(f"{info}: too large to state a shape")
    if len(info.shape) != 1 or info.dtype not in _STATING:
        raise CheckpointError(f"{info.file}: {info}; a shape is stated by a row of integers")
    try:
        return scheme.read_shape(read_tensor(info))
    except WeightError as error:
        raise CheckpointError(f"{prefix}: {error}") from error


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort by name, but by number where a part is one."""
    parts = name.split(".")
    return [(0, int(p), "") if p.isdecimal() and len(p) < 20 else (1, 0, p) for p in parts]


def _report(layer: FoundLayer, target: Target, settings: Settings | None) -> LayerReport:
    try:
        decision = select(layer.config, target, settings=settings)
    except NoKernelError as error:  # strict mode; a report shows it rather than ends
        decision = error.decision
    return LayerReport(layer.prefix, layer.scheme, layer.K, layer.N, layer.nbytes, decision)


def _size(nbytes: int) -> str:
    value, units = float(nbytes), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
