"""`RenamedScheme`: a scheme under other names, for tools that store what another one stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.params import ParamSpec
from qcore.quantization.base import CanonicalLinear, LinearScheme

__all__ = ["RenamedScheme"]


@dataclass(frozen=True)
class RenamedScheme(LinearScheme):
    """Another scheme, whose tensors have other names.

    Attributes:
        title: what the scheme is called.
        inner: the scheme.
        names: its name of a tensor -> the checkpoint's. Optional tensors without one are not there.
        unused: tensors of the checkpoint that say nothing more, by name.
    """

    title: str
    inner: LinearScheme
    names: Mapping[str, str]
    unused: Mapping[str, ParamSpec] = field(default_factory=dict)

    def describe(self) -> str:
        """The title."""
        return self.title

    def _shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {ours: shapes[name] for ours, name in self.names.items() if name in shapes}

    def refined(self, shapes: Mapping[str, tuple[int, ...]]) -> LinearScheme:
        """As the scheme says."""
        return replace(self, inner=self.inner.refined(self._shapes(shapes)))

    def stored_as(self, dtypes: Mapping[str, torch.dtype]) -> LinearScheme:
        """As the scheme says."""
        ours = {name: dtypes[theirs] for name, theirs in self.names.items() if theirs in dtypes}
        return replace(self, inner=self.inner.stored_as(ours))

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """The scheme's, by the checkpoint's names."""
        specs = self.inner.checkpoint_tensors(K, N)
        return {self.names[ours]: s for ours, s in specs.items() if ours in self.names} | dict(
            self.unused
        )

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """As the scheme says."""
        return self.inner.infer_shape(self._shapes(shapes))

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MMLinearLayerConfig:
        """The scheme's."""
        return self.inner.layer_config(K, N, act_dtype)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """The scheme's."""
        ours = {name: tensors[theirs] for name, theirs in self.names.items() if theirs in tensors}
        return self.inner.canonicalize(ours, K, N, act_dtype)
