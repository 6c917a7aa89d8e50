"""`KernelLayer`: a module whose weights are in the layout of the kernel selected for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qcore.errors import WeightError
from qcore.facts.target import Target
from qcore.kernels.base import LinearKernel
from qcore.kernels.loading import process_weights
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.params import check_params
from qcore.selection.algorithm import select
from qcore.selection.decision import Decision
from qcore.settings import Settings

__all__ = ["KernelLayer"]


class KernelLayer(torch.nn.Module):
    """Base of `QuantizedLinear` and `QuantizedExperts`.

    Attributes:
        prefix: the layer's name, for messages.
        kernel: the kernel instance.
        decision: why it was selected.
    """

    prefix: str
    kernel: LinearKernel[Any]
    decision: Decision

    def _hold(
        self,
        config: MMLinearLayerConfig,
        tensors: Mapping[str, torch.Tensor],
        target: Target | None,
        settings: Settings | None,
    ) -> None:
        """Select a kernel, register the canonical tensors by its names for them, and pack them."""
        check_params(config.params(), tensors, self.prefix or "layer")
        if target is None:
            target = Target.current(next(iter(tensors.values())).device)
        self.decision = select(config, target, settings=settings)
        self.kernel = self.decision.kernel_class.from_config(config)
        names = self.kernel.layer_names()
        for canonical, spec in config.params().items():
            tensor = tensors.get(canonical)
            name = names.get(canonical, canonical)
            if tensor is None:
                self.register_parameter(name, None)
                continue
            parameter = torch.nn.Parameter(tensor, requires_grad=False)
            for attribute, value in spec.attrs.items():
                setattr(parameter, attribute, value)
            self.register_parameter(name, parameter)
        process_weights(self.kernel, self)

    def _refuse_gradients(self, x: torch.Tensor) -> None:
        """Refuse an input that gradients are asked for: kernels have no backward.

        Raises:
            WeightError: they are.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise WeightError(
                f"{self.prefix or 'layer'}: {type(self.kernel).__name__} gives no gradients; run "
                "the model under torch.no_grad(), and train the float model instead"
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Let through what moves nothing; the kernel was chosen for this device and dtype."""
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            if tensor is None:
                continue
            probe = fn(tensor.detach()[:0] if tensor.dim() else tensor.detach())
            if (probe.device, probe.dtype) != (tensor.device, tensor.dtype):
                raise WeightError(
                    f"{self.prefix or 'layer'}: {name} would become {probe.dtype} on "
                    f"{probe.device}, but {type(self.kernel).__name__} was selected for "
                    f"{tensor.device} and packed its weights; instead of moving the model, load it "
                    "with load_model(..., device=..., dtype=...), or with "
                    "from_pretrained(..., device_map=..., dtype=...)"
                )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
