"""Checks of the ops' arguments, in the words of their schemas."""

from __future__ import annotations

import torch
from qcore.errors import ConfigError

__all__ = [
    "activation_scale",
    "check_dtype",
    "check_float_out",
    "check_shape",
    "check_weight_rows",
    "group_size_of",
]

Tensor = torch.Tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(op: str, name: str, t: Tensor, *allowed: torch.dtype) -> None:
    """Raise `ConfigError` unless ``t`` has one of the dtypes."""
    if t.dtype not in allowed:
        raise ConfigError(
            f"{op}: {name} is {_name(t.dtype)}; allowed: {', '.join(map(_name, allowed))}"
        )


def check_float_out(op: str, dtype: torch.dtype) -> torch.dtype:
    """Raise `ConfigError` unless ``dtype`` is one that results may have."""
    allowed = (torch.float16, torch.bfloat16, torch.float32)
    if dtype not in allowed:
        raise ConfigError(
            f"{op}: out_dtype is {_name(dtype)}; allowed: {', '.join(map(_name, allowed))}"
        )
    return dtype


def check_shape(op: str, name: str, t: Tensor, *allowed: tuple[int, ...]) -> None:
    """Raise `ConfigError` unless ``t`` has one of the shapes."""
    if tuple(t.shape) not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in allowed)
        raise ConfigError(f"{op}: {name} has shape {list(t.shape)}; it must be {wanted}")


def check_weight_rows(op: str, B: Tensor, words: int) -> Tensor:
    """A packed B as rows of outputs: [N, words].

    Raises:
        ConfigError: it has another shape than [words, N], or its words do not lie side by side
            along K, as in the transposed view of a contiguous [N, words].
    """
    if B.dim() != 2 or B.shape[0] != words:
        raise ConfigError(f"{op}: B has shape {list(B.shape)}; for this A it must be [{words}, N]")
    if words > 1 and B.stride(0) != 1:
        raise ConfigError(
            f"{op}: B has strides {list(B.stride())}; the first must be 1: pass the transposed "
            "view of a contiguous [N, K] packed along K"
        )
    return B.t()


def group_size_of(op: str, name: str, count: int, size: int, axis: str) -> int:
    """Elements in each of ``count`` groups of ``size``.

    Raises:
        ConfigError: the groups are not equal.
    """
    if count < 1 or size % count:
        raise ConfigError(
            f"{op}: {name} has {count} groups along {axis}, and {axis}={size} is not a multiple"
        )
    return size // count


def activation_scale(op: str, name: str, scale: Tensor, M: int, K: int) -> tuple[Tensor, int]:
    """A scale [1], [M, 1] or [M, K / g] as `matmul` takes it, and its group.

    Raises:
        ConfigError: it has another shape.
    """
    if scale.numel() == 1 and scale.dim() < 2:
        return scale.reshape(1), -1
    if scale.dim() < 2 or scale.shape[-1] == 1:
        check_shape(op, name, scale.reshape(-1), (M,), (1,))
        return (
            (scale.reshape(1), -1) if scale.numel() == 1 else (scale.reshape(M, 1).contiguous(), 0)
        )
    flat = scale.reshape(-1, scale.shape[-1])
    group = group_size_of(op, name, flat.shape[1], K, "K")
    check_shape(op, name, flat, (M, flat.shape[1]))
    return flat.contiguous(), group
