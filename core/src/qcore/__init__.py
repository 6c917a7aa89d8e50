"""qcore: which kernel runs this quantized linear layer, here, and why; then runs it.

The names below are loaded when they are first used, so that ``import qcore`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "qcore.errors": (
        "CheckpointError",
        "ConfigError",
        "KernelRefusedError",
        "MissingDependencyError",
        "NoKernelError",
        "QcoreError",
        "RegistrationError",
        "SettingsError",
        "TargetError",
        "UnknownQuantizationError",
        "UnsupportedQuantizationError",
        "WeightError",
    ),
    "qcore.facts.platform": ("Platform",),
    "qcore.facts.quant_key": ("GroupShape", "QuantKey", "ScaleDesc"),
    "qcore.facts.scalar_type": ("ScalarType", "scalar_types"),
    "qcore.facts.target": ("Target",),
    "qcore.layers": (
        "CodebookLinearLayerConfig",
        "FP8ScaledMMLinearLayerConfig",
        "Fp8BlockScaledMMLinearLayerConfig",
        "GGUFLinearLayerConfig",
        "Int8ScaledMMLinearLayerConfig",
        "MMLinearLayerConfig",
        "MPLinearLayerConfig",
        "MxFp4LinearLayerConfig",
        "Mxfp8LinearLayerConfig",
        "NvFp4LinearLayerConfig",
    ),
    "qcore.registry": ("get_registry", "reset_registry"),
    "qcore.selection": (
        "Decision",
        "choose_mp_linear_kernel",
        "choose_scaled_mm_linear_kernel",
        "init_fp8_linear_kernel",
        "init_int8_linear_kernel",
        "init_mxfp4_linear_kernel",
        "init_mxfp8_linear_kernel",
        "init_nvfp4_linear_kernel",
        "register_linear_kernel",
        "select",
    ),
    "qcore.settings": ("Settings",),
    "qcore.models": ("explain", "load_model"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(["__version__", *_HOME_OF])

if TYPE_CHECKING:
    from qcore.errors import (
        CheckpointError as CheckpointError,
    )
    from qcore.errors import (
        ConfigError as ConfigError,
    )
    from qcore.errors import (
        KernelRefusedError as KernelRefusedError,
    )
    from qcore.errors import (
        MissingDependencyError as MissingDependencyError,
    )
    from qcore.errors import (
        NoKernelError as NoKernelError,
    )
    from qcore.errors import (
        QcoreError as QcoreError,
    )
    from qcore.errors import (
        RegistrationError as RegistrationError,
    )
    from qcore.errors import (
        SettingsError as SettingsError,
    )
    from qcore.errors import (
        TargetError as TargetError,
    )
    from qcore.errors import (
        UnknownQuantizationError as UnknownQuantizationError,
    )
    from qcore.errors import (
        UnsupportedQuantizationError as UnsupportedQuantizationError,
    )
    from qcore.errors import (
        WeightError as WeightError,
    )
    from qcore.facts.platform import (
        Platform as Platform,
    )
    from qcore.facts.quant_key import (
        GroupShape as GroupShape,
    )
    from qcore.facts.quant_key import (
        QuantKey as QuantKey,
    )
    from qcore.facts.quant_key import (
        ScaleDesc as ScaleDesc,
    )
    from qcore.facts.scalar_type import (
        ScalarType as ScalarType,
    )
    from qcore.facts.scalar_type import (
        scalar_types as scalar_types,
    )
    from qcore.facts.target import (
        Target as Target,
    )
    from qcore.layers import (
        CodebookLinearLayerConfig as CodebookLinearLayerConfig,
    )
    from qcore.layers import (
        Fp8BlockScaledMMLinearLayerConfig as Fp8BlockScaledMMLinearLayerConfig,
    )
    from qcore.layers import (
        FP8ScaledMMLinearLayerConfig as FP8ScaledMMLinearLayerConfig,
    )
    from qcore.layers import (
        GGUFLinearLayerConfig as GGUFLinearLayerConfig,
    )
    from qcore.layers import (
        Int8ScaledMMLinearLayerConfig as Int8ScaledMMLinearLayerConfig,
    )
    from qcore.layers import (
        MMLinearLayerConfig as MMLinearLayerConfig,
    )
    from qcore.layers import (
        MPLinearLayerConfig as MPLinearLayerConfig,
    )
    from qcore.layers import (
        MxFp4LinearLayerConfig as MxFp4LinearLayerConfig,
    )
    from qcore.layers import (
        Mxfp8LinearLayerConfig as Mxfp8LinearLayerConfig,
    )
    from qcore.layers import (
        NvFp4LinearLayerConfig as NvFp4LinearLayerConfig,
    )
    from qcore.models import (
        explain as explain,
    )
    from qcore.models import (
        load_model as load_model,
    )
    from qcore.registry import (
        get_registry as get_registry,
    )
    from qcore.registry import (
        reset_registry as reset_registry,
    )
    from qcore.selection import (
        Decision as Decision,
    )
    from qcore.selection import (
        choose_mp_linear_kernel as choose_mp_linear_kernel,
    )
    from qcore.selection import (
        choose_scaled_mm_linear_kernel as choose_scaled_mm_linear_kernel,
    )
    from qcore.selection import (
        init_fp8_linear_kernel as init_fp8_linear_kernel,
    )
    from qcore.selection import (
        init_int8_linear_kernel as init_int8_linear_kernel,
    )
    from qcore.selection import (
        init_mxfp4_linear_kernel as init_mxfp4_linear_kernel,
    )
    from qcore.selection import (
        init_mxfp8_linear_kernel as init_mxfp8_linear_kernel,
    )
    from qcore.selection import (
        init_nvfp4_linear_kernel as init_nvfp4_linear_kernel,
    )
    from qcore.selection import (
        register_linear_kernel as register_linear_kernel,
    )
    from qcore.selection import (
        select as select,
    )
    from qcore.settings import (
        Settings as Settings,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qcore' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
