"""Random layers: canonical tensors, inputs and the module that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch

from qcore.facts.scalar_type import ScalarType
from qcore.kernels.parameters import set_weight_attrs
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    GGUFLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
    ParamSpec,
)
from qcore.layers.moe import PROJECTIONS, ExpertsLayerConfig
from qcore.layers.params import FLOAT_DTYPES, check_params
from qcore.numerics.gguf_blocks import dequantize_blocks
from qcore.numerics.packing import pack_int32

__all__ = [
    "input_dtype",
    "load_tensors",
    "make_layer",
    "output_dtype",
    "random_bias",
    "random_input",
    "random_tensors",
    "shape_of",
]

DEFAULT_SHAPE = (48, 96)
"""(N, K) of the layers made for a config without a shape."""

_DEFAULT_DTYPE = torch.bfloat16
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def shape_of(config: MMLinearLayerConfig) -> tuple[int, int]:
    """(N, K), with `DEFAULT_SHAPE` where the config has none."""
    N, K = config.out_features, config.in_features
    return DEFAULT_SHAPE if N is None or K is None else (N, K)


def input_dtype(config: MMLinearLayerConfig) -> torch.dtype:
    """Dtype of the input: what the config says, bfloat16 if it does not.

    An mp layer whose activations are FP8 quantizes them itself: its input has the output's dtype.
    """
    dtype = config.activation_dtype
    if dtype in _FLOATS:
        assert dtype is not None
        return dtype
    return getattr(config, "out_type", None) or _DEFAULT_DTYPE


def output_dtype(config: MMLinearLayerConfig) -> torch.dtype:
    """Dtype of the output: what the config says, or else the input's."""
    said = getattr(config, "out_dtype", None) or getattr(config, "out_type", None)
    return said or input_dtype(config)


# -- tensors -----------------------------------------------------------------------------------


def random_tensors(
    config: MMLinearLayerConfig, seed: int = 0, *, variant: int = 0
) -> dict[str, torch.Tensor]:
    """Canonical tensors that fit ``config``, on the CPU.

    Every code that the weight's format has occurs with equal probability (except NaN); scales are
    such that outputs are of the order of 1.

    Args:
        config: the layer.
        seed: of the random numbers.
        variant: a canonical tensor may have one of several shapes and dtypes; 0 takes the first
            shape and, for scales, the input's dtype, other numbers go through the others in turn.

    Returns:
        Name -> tensor, without the optional tensors that the config does not need.
    """
    if isinstance(config, ExpertsLayerConfig):
        return _random_experts(config, seed, variant)
    make = _Maker(_sized(config), seed, variant)
    made = {
        name: make.tensor(name, spec)
        for name, spec in make.config.params().items()
        if not spec.optional
    }
    check_params(make.config.params(), made, "random_tensors")
    return made


def _random_experts(config: ExpertsLayerConfig, seed: int, variant: int) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for shift, projection in enumerate(PROJECTIONS):
        linear = config.projection(projection)
        experts = [
            random_tensors(linear, (seed * 31 + expert) * len(PROJECTIONS) + shift, variant=variant)
            for expert in range(config.num_experts)
        ]
        for name in experts[0]:
            stack = torch.stack([expert[name] for expert in experts])
            made[config.stacked_name(projection, name)] = stack
        if config.has_bias:
            random = torch.Generator().manual_seed(seed * 31 + 7 + shift)
            shape = (config.num_experts, config.shape(projection)[1])
            dtype = (config.act_type, *FLOAT_DTYPES)[variant % 4]
            made[f"{projection}_bias"] = torch.randn(shape, generator=random).to(dtype)
    check_params(config.params(), made, "random_tensors")
    return made


def _sized(config: MMLinearLayerConfig) -> MMLinearLayerConfig:
    """``config``, with a shape if it has none."""
    if config.in_features is not None:
        return config
    with_shape: MMLinearLayerConfig = dataclasses.replace(
        cast(Any, config), weight_shape=DEFAULT_SHAPE
    )
    return with_shape


class _Maker:
    """Makes the tensors of one layer, by name."""

    def __init__(self, config: MMLinearLayerConfig, seed: int, variant: int) -> None:
        self.config = config
        self.variant = variant
        self.N, self.K = shape_of(config)
        self.random = torch.Generator().manual_seed(seed)
        # Scales are divided by it, so that a row of K weights has a norm of the order of 1.
        self.fan = self.K**0.5

    def tensor(self, name: str, spec: ParamSpec) -> torch.Tensor:
        # Only a fused layer's tensor scales have no fixed shape: one for each of its parts.
        shape = tuple(side or 1 for side in spec.shape[self.variant % len(spec.shape)])
        if name in ("weight", "weight_packed"):
            return self._weight(shape, spec)
        if name == "weight_codebook":
            # Unevenly spaced, in no order, of either sign.
            return torch.randn(shape, generator=self.random)
        if name == "weight_offset":
            return self._uniform(-1.0, 1.0, shape).mul_(1.0 / self.fan)
        if name == "weight_zero_point":
            assert isinstance(self.config, MPLinearLayerConfig)
            bits = self.config.weight_type.size_bits
            return pack_int32(self._integers(0, 1 << bits, (self.N, shape[1])), bits, dim=0)
        if name == "weight_g_idx":
            return self._g_idx()
        if name == "input_zero_point":
            return self._integers(-50, 50, shape).to(torch.int32)
        if name == "input_scale":
            # Three standard deviations fit, so some values saturate.
            limit = 127.0 if isinstance(self.config, Int8ScaledMMLinearLayerConfig) else 448.0
            return self._uniform(0.9, 1.1, shape).mul_(3.0 / limit)
        if name == "input_global_scale":
            return self._uniform(0.9, 1.1, shape).mul_(4.0 / (448.0 * 6.0))
        return self._scale(name, shape, spec)

    def _uniform(self, low: float, high: float, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=self.random).mul_(high - low).add_(low)

    def _integers(self, low: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.random)

    def _weight(self, shape: tuple[int, ...], spec: ParamSpec) -> torch.Tensor:
        (dtype,) = spec.dtypes
        if isinstance(self.config, GGUFLinearLayerConfig):
            return self._gguf_blocks(self.config, shape)
        if isinstance(self.config, MPLinearLayerConfig):
            kind = self.config.weight_type
            codes = self._integers(*_codes(kind), (self.N, self.K))
            return codes.to(torch.int8) if kind.signed else pack_int32(codes, kind.size_bits, 1)
        if isinstance(self.config, CodebookLinearLayerConfig):
            codes = self._integers(0, 1 << self.config.bits, (self.N, self.K))
            return pack_int32(codes, self.config.bits, 1)
        if dtype in (torch.int8, torch.uint8):
            low, high = (-128, 128) if dtype == torch.int8 else (0, 256)
            return self._integers(low, high, shape).to(dtype)
        rows = _without_nan(self._integers(0, 256, (self.N, self.K)), dtype)
        # "fp8" weights are [K, N], the transposed view of contiguous rows; all others are rows.
        return rows.t() if self.config.kernel_type == "fp8" else rows

    def _gguf_blocks(self, config: GGUFLinearLayerConfig, shape: tuple[int, ...]) -> torch.Tensor:
        """Random bytes, with halves that make the weights as large as they should be."""
        kind = config.block_type
        blocks = self._integers(0, 256, (self.N, shape[1])).to(torch.uint8)
        blocks = blocks.reshape(-1, kind.type_size)
        for at in kind.halves:
            blocks[:, at : at + 2] = torch.ones(1, dtype=torch.float16).view(torch.uint8)
        size = dequantize_blocks(blocks, config.qtype).square().mean().sqrt() * self.fan
        for at in kind.halves:
            scale = self._uniform(0.5, 1.5, (len(blocks), 1)).div_(size)
            blocks[:, at : at + 2] = scale.to(torch.float16).view(torch.uint8)
        return blocks.reshape(shape)

    def _g_idx(self) -> torch.Tensor:
        """The groups of a layer whose inputs were reordered before they were grouped."""
        assert isinstance(self.config, MPLinearLayerConfig)
        shapes = self.config.params()["weight_scale"].shape
        groups = shapes[self.variant % len(shapes)][1]
        assert groups is not None
        size = self.K if self.config.group_size == -1 else self.config.group_size
        whole_k = max(self.K, min(groups * size, self.config.full_weight_shape[0]))
        order = torch.randperm(whole_k, generator=self.random)[: self.K]
        return (order // size).to(torch.int32)

    def _scale(self, name: str, shape: tuple[int, ...], spec: ParamSpec) -> torch.Tensor:
        if name == "weight_global_scale":
            return self._uniform(0.5, 1.0, shape).mul_(1.0 / (8.0 * self.fan))
        if spec.dtypes == (torch.float8_e4m3fn,):  # NVFP4's blocks
            return self._uniform(0.25, 4.0, shape).to(torch.float8_e4m3fn)
        if spec.dtypes == (torch.uint8,):  # e8m0
            fp8 = self.config.kernel_type == "mxfp8"
            middle = 127 - round(self.fan).bit_length() - (7 if fp8 else 1)
            return self._integers(middle - 2, middle + 2, shape).to(torch.uint8)
        dtypes = sorted(spec.dtypes, key=lambda dtype: dtype != input_dtype(self.config))
        largest = 200.0
        if isinstance(self.config, MPLinearLayerConfig):
            largest = float(1 << (self.config.weight_type.size_bits - 1))
        elif isinstance(self.config, CodebookLinearLayerConfig):
            largest = 1.0
        elif isinstance(self.config, Int8ScaledMMLinearLayerConfig):
            largest = 127.0
        values = self._uniform(0.5, 1.5, shape).mul_(1.0 / (largest * self.fan))
        return values.to(dtypes[self.variant % len(dtypes)])


def _codes(kind: ScalarType) -> tuple[int, int]:
    """First code and the one after the last."""
    if kind.signed:
        return -(1 << (kind.size_bits - 1)), 1 << (kind.size_bits - 1)
    return 0, 1 << kind.size_bits


def _without_nan(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = codes.to(torch.uint8).view(dtype)
    zero = torch.zeros_like(codes, dtype=torch.uint8)
    return torch.where(values.float().isnan(), zero, codes.to(torch.uint8)).view(dtype)


def random_input(config: MMLinearLayerConfig, M: int, seed: int = 0) -> torch.Tensor:
    """An input [M, K] for ``config``, on the CPU: normal, each row with a scale of its own."""
    random = torch.Generator().manual_seed(seed)
    _, K = shape_of(config)
    rows = torch.randn((M, K), generator=random)
    rows *= 0.25 + 1.75 * torch.rand((M, 1), generator=random)
    return rows.to(input_dtype(config))


def random_bias(config: MMLinearLayerConfig, seed: int = 0) -> torch.Tensor:
    """A bias [N] for ``config``, on the CPU, in the output's dtype."""
    random = torch.Generator().manual_seed(seed)
    N, _ = shape_of(config)
    return torch.randn((N,), generator=random).to(output_dtype(config))


# -- layers ------------------------------------------------------------------------------------


def make_layer(
    config: MMLinearLayerConfig,
    tensors: Mapping[str, torch.Tensor],
    bias: torch.Tensor | None = None,
    *,
    device: str | torch.device = "cpu",
) -> torch.nn.Module:
    """A module that holds copies of ``tensors``, as an engine's linear layer does before packing.

    Its parameters have the annotations of `ParamSpec.attrs`, and it has the attributes by which
    vLLM-style kernels know a layer: ``input_size_per_partition``, ``output_size_per_partition``,
    ``logical_widths``, ``params_dtype``, ``weight_block_size`` and ``bias``.

    Args:
        config: the layer.
        tensors: the canonical tensors, by canonical name.
        bias: [N].
        device: where the parameters go.
    """
    N, K = shape_of(config)
    layer: Any = torch.nn.Module()
    layer.prefix = "layer"
    layer.input_size_per_partition, layer.output_size_per_partition = K, N
    layer.input_size, layer.output_size = K, N
    if isinstance(config, MPLinearLayerConfig):
        layer.input_size, layer.output_size = config.full_weight_shape
    layer.output_partition_sizes = layer.logical_widths = [N]
    layer.params_dtype = layer.orig_dtype = input_dtype(config)
    if isinstance(config, Fp8BlockScaledMMLinearLayerConfig):
        layer.weight_block_size = list(config.weight_block)
    load_tensors(layer, config, tensors, device=device)
    if bias is None:
        layer.register_parameter("bias", None)
    else:
        layer.bias = torch.nn.Parameter(bias.to(device, copy=True), requires_grad=False)
    result: torch.nn.Module = layer
    return result


def load_tensors(
    layer: torch.nn.Module,
    config: MMLinearLayerConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    device: str | torch.device = "cpu",
) -> None:
    """Give ``layer`` new parameters with copies of ``tensors``, in place of any it has."""
    for name, spec in config.params().items():
        if name in tensors:
            copy = tensors[name].detach().to(device, copy=True)
            parameter = torch.nn.Parameter(copy, requires_grad=False)
            set_weight_attrs(parameter, spec.attrs)
            if hasattr(layer, name):
                delattr(layer, name)
            layer.register_parameter(name, parameter)
        elif name not in layer._parameters:
            layer.register_parameter(name, None)
