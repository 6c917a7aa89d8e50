"""`ExpertsKernel`: base of the kernels that run the experts of a mixture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch

from qcore.errors import WeightError
from qcore.kernels.base import LinearKernel, tensor_of
from qcore.layers.moe import ExpertsLayerConfig, MoeMxfp4LayerConfig, MoeWNA16LayerConfig

__all__ = [
    "ExpertsKernel",
    "GroupedExpertsKernel",
    "MoeMxfp4Kernel",
    "MoeWNA16Kernel",
    "gated",
]

ConfigT = TypeVar("ConfigT", bound=ExpertsLayerConfig)

_ALPHA, _LIMIT = 1.702, 7.0


class ExpertsKernel(LinearKernel[ConfigT]):
    """Base of the kernels of experts, whatever their weights are.

    All of `LinearKernel` holds but one thing: a mixture's output depends on the routing, so its
    kernels are run by `apply`, and not by `apply_weights`.
    """

    @abstractmethod
    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Run the experts: ``out[t] = sum(weights[t, j] * expert(ids[t, j])(x[t]) for j)``.

        Args:
            layer: the layer, processed.
            x: [T, H].
            topk_weights: float [T, J], the weights of each token's experts; used as they are.
            topk_ids: int32 or int64 [T, J], the experts; one that is not there (as the expert
                parallelism of transformers marks those of other ranks) adds nothing.

        Returns:
            [T, H], in the dtype of ``x``.
        """

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Not for experts.

        Raises:
            WeightError: always.
        """
        raise WeightError(
            f"{type(self).__name__} runs experts, which need the routing: call "
            "apply(layer, x, topk_weights, topk_ids)"
        )


class MoeWNA16Kernel(ExpertsKernel[MoeWNA16LayerConfig]):
    """Base of the "moe_wna16" kernels."""

    kernel_type: ClassVar[str] = "moe_wna16"


class MoeMxfp4Kernel(ExpertsKernel[MoeMxfp4LayerConfig]):
    """Base of the "moe_mxfp4" kernels."""

    kernel_type: ClassVar[str] = "moe_mxfp4"


class GroupedExpertsKernel(ExpertsKernel[ConfigT]):
    """A kernel that runs one expert after the other, each on the tokens that were sent to it.

    A subclass says how one expert's projection is computed; products of gate and up, and sums over
    experts, are made here, in float32. A token's sum goes through its experts in their order in the
    layer, so that it does not depend on the other tokens.
    """

    @abstractmethod
    def project(
        self, layer: torch.nn.Module, projection: str, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        """Multiply by one matrix of one expert; the bias is added elsewhere.

        Args:
            layer: the layer, processed.
            projection: ``w13`` or ``w2``.
            expert: its number.
            rows: [M, K], in the input's dtype for ``w13``; as ``intermediate`` says for ``w2``.

        Returns:
            [M, N], float32.
        """

    def intermediate(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What goes from the first product to the second, from its float32 value."""
        return rows

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
    ) -> torch.Tensor:
        """See `ExpertsKernel.apply`."""
        E, J = self.config.num_experts, topk_ids.shape[-1]
        join = gated(self.config.activation)
        out = x.new_zeros(x.shape, dtype=torch.float32)
        flat = topk_ids.reshape(-1)
        # Whatever is no expert is counted as the one after the last.
        flat = torch.where((flat < 0) | (flat > E), E, flat)
        order = flat.argsort(stable=True)
        ends = torch.bincount(flat, minlength=E + 1)[:E].cumsum(0).tolist()
        weights = topk_weights.reshape(-1).to(torch.float32)
        start = 0
        for expert, end in enumerate(ends):
            if end == start:
                continue
            pairs = order[start:end]
            tokens, start = pairs // J, end
            gate, up = self._product(layer, "w13", expert, x[tokens]).chunk(2, dim=-1)
            inner = self.intermediate(join(gate, up), x)
            rows = self._product(layer, "w2", expert, inner)
            out.index_add_(0, tokens, rows * weights[pairs, None])
        return out.to(x.dtype)

    def _product(
        self, layer: torch.nn.Module, projection: str, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        product = self.project(layer, projection, expert, rows)
        if not self.config.has_bias:
            return product
        return product + tensor_of(layer, f"{projection}_bias")[expert].to(torch.float32)


def gated(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The function of gate and up of that name in `qcore.layers.moe.EXPERT_ACTIVATIONS`."""
    if name == "swigluoai":
        return _swigluoai
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }
    function = functions[name]
    return lambda gate, up: function(gate) * up


def _swigluoai(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.clamp(max=_LIMIT), up.clamp(-_LIMIT, _LIMIT)
    return gate * torch.sigmoid(_ALPHA * gate) * (up + 1)
