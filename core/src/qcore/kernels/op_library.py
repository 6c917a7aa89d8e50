"""`OpLibrary`: ops of torch that are written in Python; and what such ops do with rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["OpLibrary", "as_rows", "empty_out"]


class OpLibrary:
    """The ops ``torch.ops.NAMESPACE.*`` of a plugin.

    Args:
        namespace: of the ops.
        keys: the kinds of tensors that they run on, as torch's dispatcher names them.
    """

    def __init__(self, namespace: str, keys: Sequence[str]) -> None:
        self.namespace = namespace
        self.keys = tuple(keys)
        self._library = torch.library.Library(  # type: ignore[no-untyped-call]
            namespace, "FRAGMENT"
        )

    def define(self, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """Register an op.

        Args:
            schema: ``NAME(Tensor x, ...) -> Tensor``, or with an overload ``NAME.overload(...)``.
            run: what it does.
            fake: the form of what it returns, for tracing.
        """
        name = schema.partition("(")[0]
        tags = (torch.Tag.pt2_compliant_tag,)
        self._library.define(schema, tags=tags)  # type: ignore[no-untyped-call]
        for key in self.keys:
            self._library.impl(name, run, key)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{self.namespace}::{name}", fake, lib=self._library)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., K] as [M, K] whose rows are without gaps; they may be apart."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def empty_out(x: torch.Tensor, out_features: int, out_dtype: torch.dtype) -> torch.Tensor:
    """Room for the result [..., N] of ``x`` [..., K]."""
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)
