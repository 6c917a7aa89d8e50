"""The functions that vLLM's callers know, each a thin door onto `select`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch

from qcore.errors import TargetError
from qcore.facts.platform import Platform
from qcore.facts.quant_key import QuantKey
from qcore.facts.target import Target
from qcore.kernels.base import LinearKernel
from qcore.kernels.block_formats import MxFp4LinearKernel, Mxfp8LinearKernel, NvFp4LinearKernel
from qcore.kernels.mixed_precision import MPLinearKernel
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel, Int8ScaledMMLinearKernel
from qcore.layers import (
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.registry.discovery import get_registry
from qcore.registry.entry import KernelImportError, RegisteredKernel
from qcore.registry.registry import Registry
from qcore.registry.spec import KernelSpec, Priority
from qcore.selection.algorithm import select

__all__ = [
    "choose_mp_linear_kernel",
    "choose_scaled_mm_linear_kernel",
    "init_fp8_linear_kernel",
    "init_int8_linear_kernel",
    "init_mxfp4_linear_kernel",
    "init_mxfp8_linear_kernel",
    "init_nvfp4_linear_kernel",
    "register_linear_kernel",
]

KernelT = TypeVar("KernelT", bound=LinearKernel[Any])
Kernels = Mapping[Platform, Sequence[type[KernelT]]]


def register_linear_kernel(
    kernel_class: type[LinearKernel[Any]],
    platform: Platform | str,
    kernel_type: str = "mp",
    *,
    priority: int = Priority.RUNTIME,
    backend: str = "runtime",
    batch_invariant: bool = False,
) -> None:
    """Register a kernel class in this process. Doing it twice is doing it once.

    Args:
        kernel_class: derives from the base of its type and implements its methods.
        platform: on what hardware.
        kernel_type: which layers; a key of `qcore.kernels.KERNEL_TYPES`.
        priority: by default above every plugin's.
        backend: the name by which users may ask for it.
        batch_invariant: whether a row's result does not depend on the other rows.

    Raises:
        RegistrationError: the class is no kernel of this type, or another has its name.
        ConfigError: an argument has a value that is not allowed.
    """
    spec = replace(
        _runtime_spec(kernel_class, platform, kernel_type),
        priority=priority,
        backend=backend,
        batch_invariant=batch_invariant,
    )
    get_registry().register_class(kernel_class, spec)


def _runtime_spec(
    kernel_class: type[LinearKernel[Any]], platform: Platform | str, kernel_type: str
) -> KernelSpec:
    """What can be said of a class that nobody declared."""
    name = getattr(kernel_class, "__name__", repr(kernel_class))
    return KernelSpec(
        name=name,
        kernel_type=kernel_type,
        platforms=(platform,),  # type: ignore[arg-type]
        entry=f"{getattr(kernel_class, '__module__', 'runtime')}:{name}",
        priority=Priority.RUNTIME,
        backend="runtime",
        description="registered at run time",
    )


def _target(compute_capability: int | None) -> Target:
    """This machine, or one like it with another compute capability."""
    here = Target.current()
    if compute_capability is None or compute_capability == here.compute_capability:
        return here
    if here.platform is Platform.ROCM:
        raise TargetError(
            "a compute capability does not say which AMD GPU; use "
            "qcore.select(config, 'rocm:gfx942')"
        )
    return Target.parse(f"cuda:sm_{compute_capability}")


def choose_mp_linear_kernel(
    config: MPLinearLayerConfig, compute_capability: int | None = None
) -> type[MPLinearKernel]:
    """The class that runs a mixed-precision layer.

    Args:
        config: the layer.
        compute_capability: of a CUDA device (90 for sm_90); None for this machine.

    Raises:
        NoKernelError: none can; the text is the whole decision.
    """
    chosen = select(config, _target(compute_capability)).kernel_class
    return cast("type[MPLinearKernel]", chosen)


def choose_scaled_mm_linear_kernel(
    config: MMLinearLayerConfig,
    possible_kernels: Kernels[KernelT] | None = None,
    compute_capability: int | None = None,
    force_kernel: type[KernelT] | None = None,
) -> type[KernelT]:
    """The class that runs a layer with scaled activations.

    Args:
        config: the layer.
        possible_kernels: platform -> classes, best first, to choose among instead of the registry.
        compute_capability: of a CUDA device; None for this machine.
        force_kernel: a class to try before all others; if it refuses the layer, another is taken
            (in strict mode: an error).

    A class that is installed keeps what it declares; another one is taken to be for the machine
    that is asked about.

    Raises:
        NoKernelError: none can; the text is the whole decision.
    """
    registry, target = get_registry(), _target(compute_capability)
    if possible_kernels is not None or (
        force_kernel is not None and not _declarations(force_kernel, config, registry)
    ):
        registry = _private_registry(config, target, possible_kernels, force_kernel, registry)
    force = (force_kernel.__name__,) if force_kernel is not None else ()
    decision = select(config, target, registry=registry, force=force)
    return cast("type[KernelT]", decision.kernel_class)


def _declarations(
    kernel_class: type[LinearKernel[Any]], config: MMLinearLayerConfig, installed: Registry
) -> list[RegisteredKernel]:
    """The declarations of an installed class: one, or one for each of several platforms."""
    found = []
    for kernel in installed.kernels(config.kernel_type):
        if kernel.name == kernel_class.__name__:
            try:
                if kernel.load() is kernel_class:
                    found.append(kernel)
            except KernelImportError:
                continue  # the name is that of a kernel that cannot be had
    return found


def _private_registry(
    config: MMLinearLayerConfig,
    target: Target,
    possible: Kernels[KernelT] | None,
    force: type[KernelT] | None,
    installed: Registry,
) -> Registry:
    """The caller's own classes, and unless they are all that is possible, what is installed.

    Those that are installed for a platform keep their declarations there, but for the priority.
    """
    registry = Registry(known=installed)
    lists = {Platform(p): list(classes) for p, classes in (possible or {}).items()}
    if force is not None:
        listed = lists.get(target.platform, [])
        lists[target.platform] = [force, *(c for c in listed if c is not force)]
    for platform, classes in lists.items():
        for index, kernel_class in enumerate(classes):
            priority = Priority.RUNTIME + len(classes) - index
            known = _declarations(kernel_class, config, installed)
            spec = next((k.spec for k in known if platform in k.spec.platforms), None)
            if spec is None:
                spec = _runtime_spec(kernel_class, platform, config.kernel_type)
            spec = replace(spec, platforms=(platform,), priority=priority)
            registry.register_class(kernel_class, spec)
    if possible is None:
        taken = {(k.name, *k.spec.platforms) for k in registry.kernels()}
        for kernel in installed.kernels(config.kernel_type):
            if not taken.intersection((kernel.name, p) for p in kernel.spec.platforms):
                registry._add(kernel)
    return registry


def init_int8_linear_kernel(
    is_channelwise: bool,
    is_static_input_scheme: bool,
    input_symmetric: bool,
    module_name: str | None = None,
    is_fused_module: bool = False,
    *,
    weight_shape: tuple[int, int] | None = None,
    input_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Int8ScaledMMLinearKernel:
    """The kernel for a W8A8 layer; arguments as in `Int8ScaledMMLinearLayerConfig`.

    Raises:
        NoKernelError: none can run it.
    """
    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=is_static_input_scheme,
        is_channelwise=is_channelwise,
        input_symmetric=input_symmetric,
        is_fused_module=is_fused_module,
        weight_shape=weight_shape,
        input_dtype=input_dtype,
        out_dtype=out_dtype,
    )
    return cast("Int8ScaledMMLinearKernel", _init(config))


def init_fp8_linear_kernel(
    activation_quant_key: QuantKey | None,
    weight_quant_key: QuantKey,
    input_dtype: torch.dtype,
    out_dtype: torch.dtype,
    weight_shape: tuple[int, int],
    force_kernel: type[LinearKernel[Any]] | None = None,
    module_name: str | None = None,
) -> FP8ScaledMMLinearKernel | LinearKernel[Any]:
    """The kernel for an FP8 layer; of type "fp8_block" if the weight is scaled in blocks.

    Raises:
        NoKernelError: none can run it.
    """
    group = weight_quant_key.scale.group_shape
    by_block = group.row >= 1 and group.col >= 1
    config_class = Fp8BlockScaledMMLinearLayerConfig if by_block else FP8ScaledMMLinearLayerConfig
    config = config_class(
        weight_quant_key=weight_quant_key,
        activation_quant_key=activation_quant_key,
        weight_shape=weight_shape,
        input_dtype=input_dtype,
        out_dtype=out_dtype,
    )
    return _init(config, force_kernel)


def init_nvfp4_linear_kernel(
    use_a16: bool = False, *, weight_shape: tuple[int, int] | None = None
) -> NvFp4LinearKernel:
    """The kernel for an NVFP4 layer; ``use_a16`` for weight-only.

    Raises:
        NoKernelError: none can run it.
    """
    config = NvFp4LinearLayerConfig(weight_shape=weight_shape)
    if use_a16:
        config = NvFp4LinearLayerConfig(weight_shape=weight_shape, activation_quant_key=None)
    return cast("NvFp4LinearKernel", _init(config))


def init_mxfp4_linear_kernel(
    activation_quant_key: QuantKey | None = None, *, weight_shape: tuple[int, int] | None = None
) -> MxFp4LinearKernel:
    """The kernel for an MXFP4 layer.

    Raises:
        NoKernelError: none can run it.
    """
    config = MxFp4LinearLayerConfig(
        weight_shape=weight_shape, activation_quant_key=activation_quant_key
    )
    return cast("MxFp4LinearKernel", _init(config))


def init_mxfp8_linear_kernel(*, weight_shape: tuple[int, int] | None = None) -> Mxfp8LinearKernel:
    """The kernel for an MXFP8 layer.

    Raises:
        NoKernelError: none can run it.
    """
    return cast("Mxfp8LinearKernel", _init(Mxfp8LinearLayerConfig(weight_shape=weight_shape)))


def _init(
    config: MMLinearLayerConfig, force_kernel: type[LinearKernel[Any]] | None = None
) -> LinearKernel[Any]:
    kernel_class: type[LinearKernel[Any]]
    if force_kernel is None:
        kernel_class = select(config).kernel_class
    else:
        kernel_class = choose_scaled_mm_linear_kernel(config, force_kernel=force_kernel)
    return kernel_class.from_config(config)
