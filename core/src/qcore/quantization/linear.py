"""`QuantizedLinear`: a linear layer that a kernel runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcore.errors import WeightError
from qcore.facts.target import Target
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES
from qcore.quantization.base import CanonicalLinear
from qcore.quantization.kernel_layer import KernelLayer
from qcore.settings import Settings

__all__ = ["QuantizedLinear"]


def _float_dtype(config: MMLinearLayerConfig) -> torch.dtype:
    """Of the layer's input, which a kernel may quantize itself (W4A8)."""
    dtype = config.activation_dtype
    if dtype is not None and dtype not in FLOAT_DTYPES:
        dtype = getattr(config, "out_type", None)
    return dtype or torch.get_default_dtype()


class QuantizedLinear(KernelLayer):
    """A linear layer in the layout of the kernel that was selected for it.

    Besides what is listed here it has the attributes that kernels written for vLLM read:
    ``input_size_per_partition``, ``output_size_per_partition``, ``logical_widths``,
    ``params_dtype``, ``orig_dtype``, ``prefix`` and ``has_bias``.

    Args:
        layer: the config and its canonical tensors, on the device where they are to stay.
        bias: [N], or None.
        prefix: the layer's name, for messages.
        target: the machine to select for; None for the one of the tensors' device.
        settings: for selection; None to read the environment.
        logical_widths: outputs of each of the layers that are joined in this one; None for one.

    Attributes:
        kernel: the kernel instance.
        decision: why it was selected.
        in_features: K.
        out_features: N.
        bias: [N], or None.

    Raises:
        NoKernelError: no kernel can run the layer; the text is the whole decision.
        WeightError: a tensor does not fit the config.
    """

    def __init__(
        self,
        layer: CanonicalLinear,
        bias: torch.Tensor | None = None,
        *,
        prefix: str = "",
        target: Target | None = None,
        settings: Settings | None = None,
        logical_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        config = layer.config
        K, N = config.in_features, config.out_features
        if K is None or N is None:
            raise WeightError(f"{prefix or 'layer'}: the layer's config has no shape")
        if bias is not None and tuple(bias.shape) != (N,):
            raise WeightError(
                f"{prefix or 'layer'}: bias has shape {list(bias.shape)}; this layer needs [{N}]"
            )
        self.prefix = prefix
        self.in_features, self.out_features = K, N
        self.input_size = self.input_size_per_partition = K
        self.output_size = self.output_size_per_partition = N
        self.logical_widths = [N] if logical_widths is None else list(logical_widths)
        if sum(self.logical_widths) != N:
            raise WeightError(
                f"{prefix or 'layer'}: logical_widths are {self.logical_widths}; their sum must be "
                f"the layer's {N} outputs"
            )
        self.output_partition_sizes = list(self.logical_widths)
        self.params_dtype = self.orig_dtype = _float_dtype(config)
        self.has_bias = bias is not None
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

        self._hold(config, layer.tensors, target, settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., K] to [..., N]."""
        self._refuse_gradients(x)
        return self.kernel.apply_weights(self, x, self.bias)

    def extra_repr(self) -> str:
        """Sizes, scheme and kernel."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kernel={type(self.kernel).__name__}, "
            f"{self.kernel.config.describe()}"
        )
