"""What the kernels by Humming share: where they run, its layout of a weight, the call.

Humming's standard form of a weight, which its ``transform_humming_tensors`` lays out anew (K
inputs, N outputs): the codes as int32 [N, K * bits / 32] without gaps, scales [N, G], zero points
as int32 [N * bits / 32, G] without gaps along N. Without zero points a code stands for
``code - 2**(bits - 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module

import torch
from qcore.errors import KernelRefusedError, WeightError
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.layers.base import dtype_name

from qcore_cuda.kernels import humming_package
from qcore_cuda.kernels.padding import pad_to

__all__ = ["HummingSupport"]

_N, _K = 256, 128
"""N and K are padded to these. Humming wants 64 and 32 at least, and its wide tiles more."""

_STEP = 8
"""What Humming leaves of padding must be whole vectors of 16 bytes: of outputs and of inputs."""

_LOCKS = 2048
"""Counters of blocks that share a tile; as many as Humming's own layer has."""


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether Humming can repack it: its kernels do that."""
    return tensor.is_cuda


class HummingSupport:
    """Comes before the base of a kernel type. A layer may run on one stream at a time."""

    layer_config: str = ""
    """Humming's description of the layer, which its kernels are compiled for."""

    @classmethod
    def get_min_capability(cls) -> int:
        """Tensor cores of float16: SM75."""
        return 75

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the GPU is SM75 or later, and on this machine whether Humming can be called."""
        target = current_platform.target
        capability = compute_capability or target.compute_capability
        return answer(
            capability is not None
            and capability < 75
            and f"needs compute capability 75, this is {capability}",
            target.is_current and humming_package.here_fault(),
        )

    @staticmethod
    def layer_refusal(
        N: int, K: int, given: torch.dtype | None, out: torch.dtype | None
    ) -> str | None:
        """Why no layer of this shape and these dtypes is run; None where one may be."""
        capability = current_platform.target.compute_capability
        reasons = [
            given not in (torch.float16, torch.bfloat16)
            and f"activations in {dtype_name(given)}; float16 and bfloat16 are implemented",
            out is not None
            and out != given
            and f"results in {dtype_name(out)}; they have the activations' dtype",
            given == torch.bfloat16
            and capability is not None
            and capability < 80
            and f"bfloat16 needs compute capability 80, this is {capability}",
            N % _STEP != 0 and f"N={N}; multiples of {_STEP} only",
            K % _STEP != 0 and f"K={K}; multiples of {_STEP} only",
        ]
        return "; ".join(str(reason) for reason in reasons if reason) or None

    @staticmethod
    def padded(N: int, K: int, group_size: int) -> tuple[int, int]:
        """N and K as they are multiplied; a group size of 0 is one group of all inputs."""
        step = math.lcm(_K, group_size or 1)
        return -(-N // _N) * _N, -(-K // step) * step

    def transform(
        self,
        tensors: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        group_size: int = 0,
        **schema: object,
    ) -> dict[str, torch.Tensor]:
        """Humming's layout of a weight, and its description in `layer_config`.

        Args:
            tensors: ``weight``, ``weight_scale`` and perhaps ``zero_point`` in the standard form,
                padded.
            shape: N and K before padding.
            dtype: of activations and results.
            group_size: inputs that share a scale; 0 for all.
            schema: of the weight, as Humming's ``HummingWeightSchema`` takes it.

        Raises:
            WeightError: the weight is not on a GPU.
            KernelRefusedError: Humming cannot lay it out or compile kernels for it.
        """
        weight = tensors["weight"]
        if not on_gpu(weight):
            raise WeightError(
                f"the weight is on {weight.device}; humming packs weights on the GPU that runs them"
            )
        N, K = shape
        kind = humming_package.function("humming.schema:HummingWeightSchema")
        describe = humming_package.function("humming.transform:prepare_layer_config")
        lay_out = humming_package.function("humming.transform:transform_humming_tensors")
        try:
            with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
                config = describe(
                    shape_n=N,
                    shape_k=K,
                    weight_schema=kind(weight_scale_group_size=group_size, **schema),
                    pad_n_to_multiple=_N,
                    pad_k_to_multiple=math.lcm(_K, group_size or 1),
                    torch_dtype=dtype,
                    device=weight.device,
                )
                packed = dict(lay_out(config=config, tensors=dict(tensors), already_padded=True))
                packed["locks"] = torch.zeros(_LOCKS, dtype=torch.int32, device=weight.device)
                text = str(config.to_str())
                # Compiles the layer's kernels, so that one which cannot be is not found out later.
                _linear(weight.new_zeros((1, K), dtype=dtype), *_of(packed), text, N)
        except Exception as error:
            raise KernelRefusedError(
                f"humming cannot prepare this layer: {type(error).__name__}: {error}"
            ) from error
        self.layer_config = text
        return packed

    def multiply(
        self,
        layer: torch.nn.Module,
        names: Mapping[str, str],
        x: torch.Tensor,
        bias: torch.Tensor | None,
        N: int,
    ) -> torch.Tensor:
        """The product and the bias; ``names`` are the layer's for what `transform` returned."""
        held = {name: tensor_of(layer, of_layer) for name, of_layer in names.items()}
        rows = x.reshape(-1, x.shape[-1])
        out: torch.Tensor = _linear(rows, *_of(held), self.layer_config, N)
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], N)


def _of(
    packed: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    return (
        packed["weight"],
        packed["weight_scale"],
        packed.get("zero_point"),
        packed["locks"],
    )


@torch.library.custom_op("qcore_cuda_humming::linear", mutates_args=())
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    locks: torch.Tensor,
    layer_config: str,
    N: int,
) -> torch.Tensor:
    # The locks are as they were when it is done.
    if x.shape[0] == 0:
        return x.new_empty((0, N))
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()
    out: torch.Tensor = import_module("humming.ops").humming_gemm(
        layer_config=layer_config,
        inputs=x,
        weight=weight,
        weight_scale=weight_scale,
        zero_point=zero_point,
        locks=locks,
    )
    return out


@_linear.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    locks: torch.Tensor,
    layer_config: str,
    N: int,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], N))


def pad_both(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """``matrix`` with zeros below and to the right, ``rows`` by ``columns``; contiguous."""
    return pad_to(pad_to(matrix, 0, rows), 1, columns).contiguous()
