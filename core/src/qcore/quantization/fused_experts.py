"""`FusedExpertsScheme`: checkpoints that hold all experts of a layer in a few stacked tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from qcore.layers.moe import ExpertsLayerConfig
from qcore.layers.params import ParamSpec
from qcore.quantization.base import CanonicalLinear

__all__ = ["FusedExpertsScheme"]


class FusedExpertsScheme(ABC):
    """How a checkpoint stores E experts of H inputs and outputs, and I in between, as one.

    Attributes:
        activation: of the experts in such checkpoints, one of `EXPERT_ACTIVATIONS`.
    """

    activation: ClassVar[str]

    @abstractmethod
    def describe(self) -> str:
        """The scheme in a few words."""

    @abstractmethod
    def checkpoint_tensors(self, E: int, H: int, I: int) -> Mapping[str, ParamSpec]:  # noqa: E741
        """The tensors, by what comes after the module's name and a dot; biases are among them.

        Raises:
            UnsupportedQuantizationError: the format cannot hold such shapes.
        """

    @abstractmethod
    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
        """(E, H, I) from the shapes of a module's tensors; None if they are not of this scheme."""

    @abstractmethod
    def layer_config(
        self,
        E: int,
        H: int,
        I: int,  # noqa: E741
        act_dtype: torch.dtype,
    ) -> ExpertsLayerConfig:
        """The experts, without a look at the tensors."""

    @abstractmethod
    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], config: ExpertsLayerConfig
    ) -> CanonicalLinear:
        """Turn checkpoint tensors into the canonical layout. Pure: nothing is changed in place.

        Args:
            tensors: as `checkpoint_tensors` describes them, already checked against it.
            config: what `layer_config` said.
        """
