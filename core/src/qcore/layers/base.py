"""What the layer configs share: the base class and the checks of their fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from qcore.errors import ConfigError
from qcore.layers.params import FLOAT_DTYPES, ParamSpec

__all__ = ["MMLinearLayerConfig", "check_bool", "check_dtype", "check_shape"]


@dataclass(frozen=True)
class MMLinearLayerConfig(ABC):
    """Base of the layer configs: everything that kernel selection may know about a layer.

    A config is frozen, hashable and validated when it is made.
    """

    kernel_type: ClassVar[str]
    """The kernel type that runs such a layer, as in the registry."""

    @property
    @abstractmethod
    def in_features(self) -> int | None:
        """K, or None when the config was made without its shape."""

    @property
    @abstractmethod
    def out_features(self) -> int | None:
        """N, or None when the config was made without its shape."""

    @property
    @abstractmethod
    def activation_dtype(self) -> torch.dtype | None:
        """Dtype of the layer's input, or None when it was not said."""

    @abstractmethod
    def params(self) -> Mapping[str, ParamSpec]:
        """The canonical layout: the tensors that a layer of this config holds when it is loaded."""

    @abstractmethod
    def describe(self) -> str:
        """The scheme in a few words: ``int4 g128 symmetric, bfloat16 activations``."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values (for JSON)."""
        plain: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (bool, int, str)) or value is None:
                plain[item.name] = value
            elif isinstance(value, tuple) and all(isinstance(v, int) for v in value):
                plain[item.name] = list(value)
            else:
                plain[item.name] = str(value).removeprefix("torch.")
        return plain


def check_shape(config: object, field: str, shape: object, *, meaning: str) -> None:
    """Raise `ConfigError` unless ``shape`` is two positive integers."""
    good = (
        isinstance(shape, tuple)
        and len(shape) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape)
    )
    if not good:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {shape!r}; "
            f"it must be a tuple of two positive integers, {meaning}"
        )


def check_dtype(
    config: object,
    field: str,
    dtype: object,
    allowed: tuple[torch.dtype, ...] = FLOAT_DTYPES,
    *,
    optional: bool = False,
) -> None:
    """Raise `ConfigError` unless ``dtype`` is one of ``allowed`` (or None where ``optional``)."""
    if dtype in allowed or (optional and dtype is None):
        return
    names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
    raise ConfigError(
        f"{type(config).__name__}.{field} is {dtype!r}; allowed: {names}"
        + (" or None" if optional else "")
    )


def check_bool(config: object, *field_names: str) -> None:
    """Raise `ConfigError` unless the named fields are booleans."""
    for name in field_names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{type(config).__name__}.{name} is {value!r}; it must be a bool")


def dtype_name(dtype: torch.dtype | None) -> str:
    """``bfloat16``; ``any dtype`` for None."""
    return "any dtype" if dtype is None else str(dtype).removeprefix("torch.")
