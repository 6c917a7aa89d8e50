"""What each op returns, without running it: for ``torch.compile`` and meta tensors.

A module of this package registers its ops' fakes with `fake`; the library's loader calls
`register_fakes` once the ops exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["fake", "fake_nothing", "register_fakes"]

Fake = TypeVar("Fake", bound=Callable[..., Any])

_fakes: dict[str, Callable[..., Any]] = {}


def fake(name: str) -> Callable[[Fake], Fake]:
    """Decorate the fake of the op ``name``."""

    def remember(function: Fake) -> Fake:
        _fakes[name] = function
        return function

    return remember


def fake_nothing(*names: str) -> None:
    """Ops that only write into their arguments."""
    for name in names:
        _fakes[name] = lambda *args, **kwargs: None


def register_fakes() -> None:
    """Register them all; the ops must be there."""
    for name, function in _fakes.items():
        torch.library.register_fake(f"qcore_cuda::{name}", function)
