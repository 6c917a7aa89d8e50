"""How an op is made: a schema, what it does on both kinds of device, and its fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["NAMESPACE", "SCHEMAS", "op"]

NAMESPACE = "qcore_xpu"

SCHEMAS: dict[str, str] = {}
"""The schema of each op that users call, by name."""

_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_KEYS = ("XPU", "CPU")

Function = TypeVar("Function", bound=Callable[..., Any])


def op(schema: str, fake: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate the function that is the op ``qcore_xpu::NAME``, on Intel GPUs and on the CPU.

    Args:
        schema: ``NAME(Tensor A, ...) -> Tensor``, or with an overload ``NAME.overload(...)``.
        fake: the form of what it returns, for tracing.
    """

    def register(function: Function) -> Function:
        name = schema.partition("(")[0]
        SCHEMAS[name] = schema
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        for key in _KEYS:
            _library.impl(name, function, key)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
        return function

    return register
