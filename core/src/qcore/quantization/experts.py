"""`QuantizedExperts`: the experts of a mixture, run by one kernel; `ExpertStack` makes their layer.

Checkpoints hold an expert as three linear layers. Each is brought into the canonical layout of "mp"
by its `LinearScheme`, like any other layer, and `ExpertStack` joins them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from qcore.errors import UnsupportedQuantizationError, WeightError
from qcore.facts.scalar_type import ScalarType
from qcore.facts.target import Target
from qcore.kernels.moe import ExpertsKernel
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.moe import PROJECTIONS, ExpertsLayerConfig, MoeWNA16LayerConfig
from qcore.layers.params import FLOAT_DTYPES
from qcore.numerics.packing import pack_int32, unpack_int32
from qcore.quantization.base import CanonicalLinear
from qcore.quantization.kernel_layer import KernelLayer
from qcore.settings import Settings

__all__ = ["ExpertStack", "QuantizedExperts", "experts_config"]


class QuantizedExperts(KernelLayer):
    """The experts of one mixture layer, in the layout of the kernel that was selected for them.

    It takes the place, and has the signature, of the experts' modules of transformers; what routes
    the tokens stays as it is.

    Args:
        layer: an `ExpertsLayerConfig` and its canonical tensors, on the device where they stay.
        prefix: the module's name, for messages.
        target: the machine to select for; None for the one of the tensors' device.
        settings: for selection; None to read the environment.

    Attributes:
        num_experts: E.
        hidden_dim: H.
        intermediate_dim: I.

    Raises:
        NoKernelError: no kernel can run the experts; the text is the whole decision.
        WeightError: a tensor does not fit the config.
    """

    kernel: ExpertsKernel[Any]

    def __init__(
        self,
        layer: CanonicalLinear,
        *,
        prefix: str = "",
        target: Target | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        config = layer.config
        if not isinstance(config, ExpertsLayerConfig):
            raise WeightError(f"{prefix or 'layer'}: {type(config).__name__} is not of experts")
        self.prefix = prefix
        self.num_experts = config.num_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.intermediate_size
        self._hold(config, layer.tensors, target, settings)

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """``hidden_states`` [T, H] to [T, H]; the other two are [T, J]."""
        self._refuse_gradients(hidden_states)
        return self.kernel.apply(self, hidden_states, top_k_weights, top_k_index)

    def extra_repr(self) -> str:
        """Sizes, scheme and kernel."""
        return (
            f"num_experts={self.num_experts}, hidden_dim={self.hidden_dim}, "
            f"intermediate_dim={self.intermediate_dim}, kernel={type(self.kernel).__name__}, "
            f"{self.kernel.config.describe()}"
        )


def experts_config(
    num_experts: int, activation: str, gate: MMLinearLayerConfig, down: MMLinearLayerConfig
) -> MoeWNA16LayerConfig:
    """The experts, from the configs of one expert's layers.

    Raises:
        UnsupportedQuantizationError: they are quantized in a way that no expert kernel takes.
    """
    for config in (gate, down):
        if not isinstance(config, MPLinearLayerConfig) or config.act_type not in FLOAT_DTYPES:
            raise UnsupportedQuantizationError(
                f"experts with {config.describe()} are not supported; supported are integer weights"
                " with float activations"
            )
    assert isinstance(gate, MPLinearLayerConfig)
    assert isinstance(down, MPLinearLayerConfig)
    if gate.weight_type.size_bits != down.weight_type.size_bits or _differ(gate, down):
        raise UnsupportedQuantizationError(
            f"gate has {gate.describe()}, down has {down.describe()}; the layers of the experts "
            "must be quantized alike"
        )
    bits = gate.weight_type.size_bits
    zero_points = gate.zero_points or down.zero_points
    return MoeWNA16LayerConfig(
        num_experts=num_experts,
        hidden_size=gate.in_features,
        intermediate_size=gate.out_features,
        weight_type=ScalarType.uint(bits, 0 if zero_points else 1 << (bits - 1)),
        act_type=gate.act_type,
        group_size=max(gate.group_size, down.group_size),
        zero_points=zero_points,
        has_g_idx=gate.has_g_idx or down.has_g_idx,
        activation=activation,
    )


def _differ(gate: MPLinearLayerConfig, down: MPLinearLayerConfig) -> bool:
    """Whether no one group size fits both; a size that is not less than K is one group too."""
    size = max(gate.group_size, down.group_size)
    return any(
        config.group_size not in (size, -1 if size >= config.in_features else size)
        for config in (gate, down)
    )


@dataclass
class _Projection:
    """One projection of all experts: N outputs, which the parts of an expert fill one by one."""

    config: MPLinearLayerConfig
    num_experts: int
    packed: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    g_idx: torch.Tensor | None = None
    filled: dict[int, int] = field(default_factory=dict)

    def add(self, expert: int, layer: CanonicalLinear) -> None:
        """Put a layer below what the expert has so far."""
        config, tensors = layer.config, layer.tensors
        assert isinstance(config, MPLinearLayerConfig)
        bits, G = config.weight_type.size_bits, config.num_groups
        first = self.filled.get(expert, 0)
        last = self.filled[expert] = first + config.out_features
        packed, scale = tensors["weight_packed"], tensors["weight_scale"]
        E, N = self.num_experts, self.config.out_features
        if self.packed is None or self.scale is None:
            self.packed = packed.new_empty((E, N, packed.shape[1]))
            self.scale = scale.new_empty((E, N, G))
        self.scale = self.scale.to(torch.promote_types(self.scale.dtype, scale.dtype))
        self.packed[expert, first:last] = packed
        self.scale[expert, first:last] = scale
        zeros = tensors.get("weight_zero_point")
        if zeros is not None:
            if self.zeros is None:
                self.zeros = self.all_zeros()
            self.zeros[expert, first:last] = unpack_int32(zeros, bits, config.out_features, dim=0)
        g_idx = tensors.get("weight_g_idx")
        mine = self._plain_g_idx() if g_idx is None else g_idx
        if self.g_idx is None and g_idx is not None:
            self.g_idx = self.all_g_idx()
        if first and self.g_idx is not None and not torch.equal(self.g_idx[expert], mine):
            raise UnsupportedQuantizationError(
                f"gate and up of expert {expert} have their inputs in different groups (g_idx)"
            )
        if self.g_idx is not None:
            self.g_idx[expert] = mine

    def all_zeros(self) -> torch.Tensor:
        """Zero points that are all the middle code."""
        assert self.packed is not None
        assert self.scale is not None
        middle = 1 << (self.config.weight_type.size_bits - 1)
        return torch.full_like(self.scale, middle, dtype=torch.uint8)

    def _plain_g_idx(self) -> torch.Tensor:
        assert self.packed is not None
        K, size = self.config.in_features, self.config.group_size
        inputs = torch.arange(K, dtype=torch.int32, device=self.packed.device)
        return inputs // (K if size == -1 else size)

    def all_g_idx(self) -> torch.Tensor:
        """Groups of inputs that are in order."""
        return self._plain_g_idx().repeat(self.num_experts, 1)


class ExpertStack:
    """Joins the layers of experts, one after the other, in the layout of "moe_wna16".

    What only some of the experts need (zero points, ``g_idx``) all of them get.

    Args:
        config: the experts, as their scheme promises them.
    """

    def __init__(self, config: MoeWNA16LayerConfig) -> None:
        self.config = config
        self._projections = {
            name: _Projection(config.projection(name), config.num_experts) for name in PROJECTIONS
        }

    def add(
        self, expert: int, gate: CanonicalLinear, up: CanonicalLinear, down: CanonicalLinear
    ) -> None:
        """Add an expert's layers, each an "mp" layer.

        Raises:
            UnsupportedQuantizationError: gate and up differ in the order of their inputs.
        """
        for name, layer in (("w13", gate), ("w13", up), ("w2", down)):
            self._projections[name].add(expert, layer)

    def finish(self) -> CanonicalLinear:
        """The experts; all must have been added."""
        parts = self._projections
        zero_points = any(part.zeros is not None for part in parts.values())
        has_g_idx = any(part.g_idx is not None for part in parts.values())
        bits = self.config.weight_type.size_bits
        config = MoeWNA16LayerConfig(
            num_experts=self.config.num_experts,
            hidden_size=self.config.hidden_size,
            intermediate_size=self.config.intermediate_size,
            weight_type=ScalarType.uint(bits, 0 if zero_points else 1 << (bits - 1)),
            act_type=self.config.act_type,
            group_size=self.config.group_size,
            zero_points=zero_points,
            has_g_idx=has_g_idx,
            activation=self.config.activation,
        )
        tensors: dict[str, torch.Tensor] = {}
        for name, part in parts.items():
            assert part.packed is not None
            assert part.scale is not None
            tensors[f"{name}_packed"], tensors[f"{name}_scale"] = part.packed, part.scale
            if zero_points:
                zeros = part.all_zeros() if part.zeros is None else part.zeros
                tensors[f"{name}_zero_point"] = pack_int32(zeros, bits, dim=1)
            if has_g_idx:
                tensors[f"{name}_g_idx"] = part.all_g_idx() if part.g_idx is None else part.g_idx
        return CanonicalLinear(config, tensors)
