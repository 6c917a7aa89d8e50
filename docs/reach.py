"""Which kernels selection would find for a layer, target by target, with all wheels installed.

Asked are the declarations of all folders of plugins, and the classes' `can_implement`, which need
no compiled library and no package of a vendor. `is_supported` is not asked: of a machine that is
described, and not this one, it knows no more than the declaration but what is not installed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from bilingual import Text
from light_specs import declared_kernels
from qcore import layers
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import GroupShape, QuantKey, ScaleDesc
from qcore.facts.scalar_type import scalar_types
from qcore.facts.target import Target
from qcore.layers import MMLinearLayerConfig
from qcore.layers.mixed_precision import MP_WEIGHT_TYPES
from qcore.registry import Numerics, RegisteredKernel
from qcore.selection import Stage
from qcore.selection.questions import config_refusal, declared_refusal
from qcore.settings import Settings

SIDE = 4096
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

TARGETS: dict[str, Text] = {
    "cpu:avx2": Text("x86 AVX2", "x86 AVX2"),
    "cpu:avx512_vnni": Text("x86 AVX-512", "x86 AVX-512"),
    "cpu:zen4": Text("Zen 4", "Zen 4"),
    "cpu:i8mm": Text("ARM", "ARM"),
    "cuda:sm_75": Text("sm_75", "sm_75"),
    "cuda:sm_80": Text("sm_80", "sm_80"),
    "cuda:sm_90": Text("sm_90", "sm_90"),
    "cuda:sm_100": Text("sm_100", "sm_100"),
    "cuda:sm_120": Text("sm_120", "sm_120"),
    "rocm:gfx90a": Text("gfx90a", "gfx90a"),
    "rocm:gfx942": Text("gfx942", "gfx942"),
    "rocm:gfx950": Text("gfx950", "gfx950"),
    "xpu": Text("XPU", "XPU"),
}

FIRST, CAN, APPROXIMATE = "●", "○", "≈"
SHORT = {torch.float16: "f16", torch.float32: "f32"}

Scheme = Mapping[str, Any]
"""What a format makes of each layer, as docs/data/format-tests.json has it."""
Matrix = tuple[tuple[str, tuple[str, ...]], ...]
"""(kernel, a mark for each target), best first."""

_SCALAR_TYPES = {
    str(kind): kind
    for kind in (*(v for k, v in vars(scalar_types).items() if k[0] != "_"), *MP_WEIGHT_TYPES)
}
_CLASSES = {cls.__name__: cls for cls in (QuantKey, ScaleDesc, GroupShape)}


def layer_config(scheme: Scheme, dtype: torch.dtype = torch.bfloat16) -> MMLinearLayerConfig:
    """A layer of this scheme, with ``SIDE`` inputs and outputs, and activations of ``dtype``."""
    cls: type[MMLinearLayerConfig] = getattr(layers, scheme["class"])
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), SIDE) | {"num_experts": 8}
    shapes = ("full_weight_shape", "partition_weight_shape", "weight_shape")
    common: dict[str, Any] = dict.fromkeys(shapes, (SIDE, SIDE)) | sizes
    common |= dict.fromkeys(("act_type", "input_dtype", "out_dtype", "out_type"), dtype)
    wanted = {item.name for item in fields(cls)}
    stated = {k: _decoded(v) for k, v in scheme.items() if k != "class"}
    return cls(**{k: v for k, v in {**common, **stated}.items() if k in wanted})


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    if not isinstance(value, Mapping):
        return value
    if value["class"] == "ScalarType":
        return _SCALAR_TYPES[value["name"]]
    parts = {k: _decoded(v) for k, v in value.items() if k != "class"}
    return _CLASSES[value["class"]](**parts)


@cache
def _able(config: MMLinearLayerConfig, target: str) -> tuple[tuple[RegisteredKernel, bool], ...]:
    """The kernels that can run it, best first, and whether they are chosen by default."""
    machine, allow = Target.parse(target), Settings(approximate=True)
    with weighing(machine):
        able = [
            kernel
            for kernel in declared_kernels()
            if kernel.spec.kernel_type == config.kernel_type
            and declared_refusal(kernel.spec, machine, allow, "auto") is None
            and _can_implement(kernel, config)
        ]
    chosen = next((k for k in able if k.spec.numerics is not Numerics.APPROXIMATE), None)
    return tuple((kernel, kernel is chosen) for kernel in able)


def _can_implement(kernel: RegisteredKernel, config: MMLinearLayerConfig) -> bool:
    """What the class says of the layer.

    Raises:
        RuntimeError: it says nothing; then the page cannot say anything of it either.
    """
    refusal = config_refusal(kernel, config)
    if refusal is None:
        return True
    stage, why, details = refusal
    if stage is Stage.IMPORT or details:
        raise RuntimeError(f"{kernel.name} does not answer for {config.describe()}: {why}")
    return False


def matrix(scheme: Scheme) -> Matrix:
    """The kernels that any target reaches, and a mark for each target."""
    marks: dict[str, dict[str, str]] = {}
    for dtype in DTYPES:
        config = layer_config(scheme, dtype)
        for target in TARGETS:
            for kernel, chosen in _able(config, target):
                mark = FIRST if chosen else CAN
                if kernel.spec.numerics is Numerics.APPROXIMATE:
                    mark = APPROXIMATE
                if dtype in SHORT:
                    mark = SHORT[dtype]
                marks.setdefault(kernel.name, {}).setdefault(target, mark)
    order = [kernel.name for kernel in declared_kernels()]
    names = sorted(marks, key=order.index)
    return tuple((name, tuple(marks[name].get(t, "") for t in TARGETS)) for name in names)


def by_platform(schemes: Iterable[Scheme]) -> dict[str, list[str]]:
    """The kernels that the targets of each platform reach for any of these schemes."""
    found: dict[str, list[str]] = {}
    for scheme in schemes:
        for name, marks in matrix(scheme):
            for target, mark in zip(TARGETS, marks, strict=True):
                names = found.setdefault(target.partition(":")[0], [])
                if mark and name not in names:
                    names.append(name)
    return found


def is_reference(name: str) -> bool:
    """Whether a kernel is the core's own, which runs on every device."""
    return any(k.name == name and k.distribution == "qcore" for k in declared_kernels())


def is_approximate(name: str) -> bool:
    """Whether a kernel runs only where the user allows that more is rounded."""
    kinds = {k.name: k.spec.numerics for k in declared_kernels()}
    return kinds[name] is Numerics.APPROXIMATE
