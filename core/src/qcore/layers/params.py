"""`ParamSpec`: what a layer's tensor must be before a kernel sees it.

A config's `params` lists them. Together they are the *canonical layout* of a kernel type: every
checkpoint format is turned into it, and every kernel packs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qcore.errors import WeightError

__all__ = ["FLOAT_DTYPES", "ParamSpec", "check_params"]

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that a scale, a bias or an activation may have."""


@dataclass(frozen=True)
class ParamSpec:
    """One tensor of the canonical layout.

    Attributes:
        shape: sizes; None for a size that the config does not fix. Several shapes may be allowed.
        dtypes: the allowed dtypes.
        optional: whether the tensor may be absent.
        attrs: facts that vLLM-style kernels read off the parameter (``input_dim``, ``output_dim``,
            ``packed_dim``, ``packed_factor``).
        about: what it holds, in a few words.
    """

    shape: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False
    attrs: Mapping[str, int] = field(default_factory=dict)
    about: str = ""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is one of the allowed ones."""
        return any(
            len(shape) == len(allowed)
            and all(a is None or a == s for a, s in zip(allowed, shape, strict=True))
            for allowed in self.shape
        )

    def describe_shape(self) -> str:
        """The allowed shapes, as text."""
        return " or ".join(
            "[" + ", ".join("?" if side is None else str(side) for side in shape) + "]"
            for shape in self.shape
        )


def check_params(
    params: Mapping[str, ParamSpec], tensors: Mapping[str, torch.Tensor | None], where: str
) -> None:
    """Check a layer's tensors against its specs.

    Args:
        params: name to spec, from a config's `params`.
        tensors: name to tensor; None counts as absent.
        where: the layer's name, for the message.

    Raises:
        WeightError: a tensor is missing, unknown, or has another shape or dtype.
    """
    for name in tensors:
        if name not in params and tensors[name] is not None:
            raise WeightError(
                f"{where}: tensor {name!r} has no place in this layer; it takes {', '.join(params)}"
            )
    for name, spec in params.items():
        tensor = tensors.get(name)
        if tensor is None:
            if not spec.optional:
                raise WeightError(f"{where}: tensor {name!r} ({spec.about}) is missing")
            continue
        if tensor.dtype not in spec.dtypes:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in spec.dtypes)
            given = str(tensor.dtype).removeprefix("torch.")
            raise WeightError(f"{where}: tensor {name!r} is {given}; allowed: {allowed}")
        if not spec.fits(tuple(tensor.shape)):
            raise WeightError(
                f"{where}: tensor {name!r} has shape {list(tensor.shape)}; "
                f"this layer needs {spec.describe_shape()}"
            )
