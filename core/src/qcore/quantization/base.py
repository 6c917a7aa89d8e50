"""`QuantizationConfig` and `LinearScheme`: what a quantization method must say.

A method describes; it does not run. Its `QuantizationConfig` reads the checkpoint's
``quantization_config`` and names a `LinearScheme` for each layer. The scheme says which tensors the
checkpoint has for such a layer, and turns them into a layer config and its canonical tensors
(`qcore.layers`). Kernels are chosen from the layer config alone, so a new format needs no kernel,
and a new kernel no format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from qcore.errors import WeightError
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.quantization.kv_cache import Fp8KVCacheMethod

if TYPE_CHECKING:
    from qcore.quantization.fused_experts import FusedExpertsScheme

__all__ = ["CanonicalLinear", "LinearScheme", "QuantizationConfig", "split_name"]

_WEIGHT = ".weight."


def split_name(name: str) -> tuple[str, str]:
    """A tensor's layer, and what its schemes call it.

    ``a.b.scales`` is ``scales`` of ``a.b``; ``a.b.weight.absmax`` is ``weight.absmax`` of it.
    """
    layer, dot, rest = name.rpartition(_WEIGHT)
    if dot:
        return layer, dot[1:] + rest
    layer, _, rest = name.rpartition(".")
    return layer, rest


@dataclass(frozen=True)
class CanonicalLinear:
    """A layer as kernels take it.

    Attributes:
        config: the layer.
        tensors: its canonical tensors, as ``config.params()`` describes them.
    """

    config: MMLinearLayerConfig
    tensors: Mapping[str, torch.Tensor]


class LinearScheme(ABC):
    """How a checkpoint stores one kind of linear layer, of K inputs and N outputs."""

    @abstractmethod
    def describe(self) -> str:
        """The scheme in a few words: ``GPTQ 4 bit g128 symmetric``."""

    @abstractmethod
    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """The tensors of such a layer, by what comes after the layer's name and a dot.

        A bias is the layer's own business and is not among them.

        Raises:
            UnsupportedQuantizationError: the format cannot hold such a shape.
        """

    @abstractmethod
    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """(K, N) from the shapes of a layer's tensors; None if they are not of this scheme."""

    def shape_tensor(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """The name of a small tensor that says (K, N), where no tensor's shape does."""
        return None

    def read_shape(self, tensor: torch.Tensor) -> tuple[int, int]:
        """(K, N) from that tensor.

        Raises:
            WeightError: it says nothing of the kind.
        """
        raise WeightError(f"{self.describe()}: no tensor of such a layer says its shape")

    def refined(self, shapes: Mapping[str, tuple[int, ...]]) -> LinearScheme:
        """The scheme of one layer, where its tensors' names and shapes say what no field does.

        Called before `checkpoint_tensors`; the scheme that comes back answers everything else.
        """
        return self

    def stored_as(self, dtypes: Mapping[str, torch.dtype]) -> LinearScheme:
        """The scheme of one layer, where only its tensors' dtypes say which kind of number it has.

        Called after `refined`.
        """
        return self

    @abstractmethod
    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MMLinearLayerConfig:
        """The layer as the method's config promises it, without a look at the tensors.

        `canonicalize` may find it simpler (a ``g_idx`` that permutes nothing), never other.

        Args:
            K: inputs.
            N: outputs.
            act_dtype: dtype of the layer's input and output.
        """

    @abstractmethod
    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Turn checkpoint tensors into the canonical layout. Pure: nothing is changed in place.

        Args:
            tensors: as `checkpoint_tensors` describes them, already checked against it.
            K: inputs.
            N: outputs.
            act_dtype: dtype of the layer's input and output.

        Raises:
            WeightError: values contradict the method's config.
        """


class QuantizationConfig(ABC):
    """A quantization method with the parameters of one checkpoint. vLLM's method names."""

    names_layers: ClassVar[bool] = False
    """Whether the config says of each layer whether it is quantized. If not, a layer that has a
    plain ``weight`` in the checkpoint is not quantized; if so, only where it has nothing else."""

    rounds_floats: ClassVar[bool] = False
    """Whether its layers are plain ``weight`` tensors, to be rounded while they are loaded."""

    @classmethod
    @abstractmethod
    def get_name(cls) -> str:
        """The ``quant_method`` of its checkpoints."""

    @classmethod
    def get_supported_act_dtypes(cls) -> Sequence[torch.dtype]:
        """Dtypes that activations may have."""
        return FLOAT_DTYPES

    @classmethod
    def get_min_capability(cls) -> int:
        """The least compute capability that any kernel needs; -1 for none. Kernels say the rest."""
        return -1

    @classmethod
    def get_config_filenames(cls) -> Sequence[str]:
        """Files that hold the config where ``config.json`` does not."""
        return ()

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizationConfig:
        """Read a ``quantization_config``.

        Raises:
            CheckpointError: a field is missing or has a value that means nothing.
            UnsupportedQuantizationError: a field has a value that is not supported.
        """

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None
    ) -> str | None:
        """Claim a checkpoint that names another method, or none.

        Args:
            hf_quant_cfg: the checkpoint's ``quantization_config``.
            user_quant: the method that the user asks for.

        Returns:
            The name of the method that is to read it, or None.
        """
        return None

    @abstractmethod
    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """The scheme of a layer; None if it is not quantized.

        Args:
            layer: the layer before it is replaced; its class and class name count.
            prefix: its name in the checkpoint.
        """

    def get_experts_scheme(self, prefix: str) -> FusedExpertsScheme | None:
        """The scheme of a module of experts, where the checkpoint holds them stacked in one.

        Experts that the checkpoint holds as linear layers are asked for one by one.

        Args:
            prefix: the module's name in the checkpoint.

        Returns:
            None if the module is not quantized, or not in this way.
        """
        return None

    def tied_weights(self) -> Mapping[str, str]:
        """Layers that are quantized from a tensor of another one, and the tensor's name.

        A layer without tensors of its own that is not among them stays tied as it is.
        """
        return {}

    def notes(self) -> Sequence[str]:
        """What the config asks for and is not done, though the checkpoint loads."""
        return ()

    def unapplied(self, name: str) -> str | None:
        """What a tensor that no layer takes is for, if the method knows it; None if it does not.

        Such tensors are left out of the model, with a note; any other one is an error.
        """
        return None

    def get_kv_cache_method(self) -> Fp8KVCacheMethod | None:
        """The KV cache that the checkpoint is meant for; None if the method knows of none."""
        return None

    def describe(self) -> str:
        """The method and its parameters in a few words."""
        return self.get_name()
