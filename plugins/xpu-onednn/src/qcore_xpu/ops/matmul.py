"""The product that all ops are made of: called on torch's current queue.

`matmul` is plain Python around the one compiled op. `using` says by which of its two ways products
are computed, and `last_implementation` what the last one of this thread ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from qcore.errors import ConfigError

from qcore_xpu import library

__all__ = ["PATHS", "last_implementation", "matmul", "new_result", "using"]

Tensor = torch.Tensor

PATHS = ("auto", "onednn", "sycl")
"""oneDNN where it has an implementation that is right, else our SYCL kernel; or one of the two."""

_path: ContextVar[str] = ContextVar("qcore_xpu_path", default="auto")
_last: ContextVar[str] = ContextVar("qcore_xpu_last", default="")


@contextmanager
def using(path: str) -> Iterator[None]:
    """Compute products by one of `PATHS` in this context. For tests and measurements.

    Raises:
        ConfigError: there is no such path.
    """
    if path not in PATHS:
        raise ConfigError(f"path is {path!r}; allowed: {', '.join(PATHS)}")
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def last_implementation() -> str:
    """What the last product ran: ``onednn NAME``, or ``sycl`` and why oneDNN did not."""
    return _last.get()


def new_result(x: Tensor, N: int, dtype: torch.dtype) -> Tensor:
    """An uninitialized [..., N] for x [..., K]."""
    return x.new_empty((*x.shape[:-1], N), dtype=dtype)


def _queue_of(x: Tensor) -> int:
    """The address of the queue to work on; 0 for tensors on the CPU."""
    return int(torch.xpu.current_stream(x.device).sycl_queue) if x.device.type == "xpu" else 0


def matmul(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    a_type: str = "",
    a_scale: Tensor | None = None,
    a_group: int = 0,
    a_zero: Tensor | None = None,
    b_type: str = "",
    b_scale: Tensor | None = None,
    b_group: tuple[int, int] = (1, 1),
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Write ``bias + sum over k of (a - a_zero) * a_scale * (b - b_zero) * b_scale`` into ``out``.

    Args:
        out: float [M, N].
        a: [M, K], or packed.
        b: [N, K], or packed.
        a_type: ``e2m1`` for two codes in a byte; "" for what the dtype says.
        a_scale: one element, or [M, ceil(K / a_group)]; uint8 stands for e8m0.
        a_group: inputs that share a scale; 0 for all of a row, -1 for all of ``a``.
        a_zero: int32, one element or [M, 1].
        b_type: ``u4`` or ``e2m1`` for packed codes.
        b_scale: one element, or [ceil(N / b_group[0]), ceil(K / b_group[1])].
        b_group: outputs and inputs that share a scale.
        b_zero: int8 [1], or 4-bit codes packed along N: int32 [ceil(K / b_group[1]), N / 8].
        bias: float [N].

    Returns:
        ``out``.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
        MissingDependencyError: the library cannot be loaded.
    """
    library.load()
    ran = torch.ops.qcore_xpu.matmul(
        out, a, a_type, a_scale, a_group, a_zero, b, b_type, b_scale, *b_group, b_zero, bias,
        _queue_of(a), _path.get(),
    )  # fmt: skip
    _last.set(ran)
    return out
