"""How an op is made: a schema, what it does on both kinds of device, and its fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from qcore.kernels.op_library import OpLibrary

__all__ = ["NAMESPACE", "SCHEMAS", "op"]

NAMESPACE = "qcore_xpu"

SCHEMAS: dict[str, str] = {}
"""The schema of each op that users call, by name."""

_OPS = OpLibrary(NAMESPACE, ("XPU", "CPU"))

Function = TypeVar("Function", bound=Callable[..., Any])


def op(schema: str, fake: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate the function that is the op ``qcore_xpu::NAME``, on Intel GPUs and on the CPU.

    Args:
        schema: ``NAME(Tensor A, ...) -> Tensor``, or with an overload ``NAME.overload(...)``.
        fake: the form of what it returns, for tracing.
    """

    def register(function: Function) -> Function:
        SCHEMAS[schema.partition("(")[0]] = schema
        _OPS.define(schema, function, fake)
        return function

    return register
