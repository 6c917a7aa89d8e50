"""Rounding at load: a `QuantizationConfig` for float checkpoints, and its `LinearScheme`.

To the loader, a float checkpoint that is to be rounded is one more format: a layer's tensor is its
float ``weight``, and `OnlineScheme.canonicalize` rounds it and goes on as with a file that
`quantize_checkpoint` wrote. So both give the same bits, and the loader's way of one layer after the
other holds here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch

from qcore.errors import CheckpointError, ConfigError, WeightError
from qcore.facts.quant_key import kNvfp4DynamicToken
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES, ParamSpec
from qcore.models.checkpoint import Checkpoint
from qcore.quantization.base import CanonicalLinear, LinearScheme, QuantizationConfig
from qcore.quantization.compressed_formats import read_scheme
from qcore.quantization.fields import Fields
from qcore.quantize.activation_scales import ActivationScales, check_scales
from qcore.quantize.choice import Choice, choose_layers
from qcore.quantize.config_groups import config_group, format_name
from qcore.quantize.model_layers import find_layers
from qcore.quantize.rounding import round_weight
from qcore.quantize.scheme import QuantizeScheme
from qcore.quantize.source import check_float

__all__ = ["OnlineConfig", "OnlineOptions", "OnlineScheme", "quantized_at_load"]


@dataclass(frozen=True)
class OnlineOptions:
    """What a user says beside the scheme; the fields are arguments of `load_model`.

    Attributes:
        lm_head_scheme: for the layer that makes the logits; None to keep it.
        targets: the layers to round; none for all.
        ignore: layers to keep.
        search: choose the scales of weights by the squared error, where that helps.
        scales: of activations.
    """

    lm_head_scheme: str | QuantizeScheme | None = None
    targets: Sequence[str] = ()
    ignore: Sequence[str] = ()
    search: bool = True
    scales: ActivationScales | None = None


@dataclass(frozen=True)
class OnlineScheme(LinearScheme):
    """A float layer that is rounded when it is read.

    Attributes:
        scheme: to what.
        search: choose scales by the squared error.
        stored: how a checkpoint would have the rounded layer.
        inputs: the tensors of its calibrated activations.
    """

    scheme: QuantizeScheme
    search: bool
    stored: LinearScheme
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    @classmethod
    def make(
        cls, scheme: QuantizeScheme, search: bool, inputs: Mapping[str, torch.Tensor]
    ) -> OnlineScheme:
        """The scheme of a layer; ``inputs`` is empty where nothing was calibrated."""
        written = scheme
        if _is_scaled_by_token(scheme, inputs):
            written = replace(scheme, inputs=None)
        group = Fields(config_group(written, ["Linear"], searched=search), f"scheme {scheme}")
        return cls(scheme, search, read_scheme(group, format_name(written)), inputs)

    def describe(self) -> str:
        """``float, rounded to int4-g128 at load``."""
        return f"float, rounded to {self.scheme} at load"

    def checkpoint_tensors(self, K: int, N: int) -> Mapping[str, ParamSpec]:
        """The float weight."""
        self.stored.checkpoint_tensors(K, N)  # refuses what the format cannot hold
        return {"weight": ParamSpec(((N, K),), FLOAT_DTYPES, about="the float weight")}

    def infer_shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """From ``weight``."""
        shape = shapes.get("weight", ())
        return (shape[1], shape[0]) if len(shape) == 2 else None

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MMLinearLayerConfig:
        """As a checkpoint's; with NVFP4's scale of each token where nothing was calibrated."""
        return self._config(self.stored.layer_config(K, N, act_dtype))

    def _config(self, config: MMLinearLayerConfig) -> MMLinearLayerConfig:
        if not _is_scaled_by_token(self.scheme, self.inputs):
            return config
        changes: dict[str, Any] = {"activation_quant_key": kNvfp4DynamicToken}
        return replace(config, **changes)

    def canonicalize(
        self, tensors: Mapping[str, torch.Tensor], K: int, N: int, act_dtype: torch.dtype
    ) -> CanonicalLinear:
        """Round, then go on as with a checkpoint of the format."""
        weight = tensors["weight"]
        try:
            rounded = round_weight(weight, self.scheme, search=self.search)
        except ValueError as error:
            raise WeightError(f"its weight cannot be rounded: {error}") from None
        inputs = {name: tensor.to(weight.device) for name, tensor in self.inputs.items()}
        layer = self.stored.canonicalize(rounded.tensors | inputs, K, N, act_dtype)
        return CanonicalLinear(self._config(layer.config), layer.tensors)


def _is_scaled_by_token(scheme: QuantizeScheme, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether activations are NVFP4 with a scale of each token: without calibration."""
    return scheme.weights == "nvfp4" and scheme.calibrated and not inputs


class OnlineConfig(QuantizationConfig):
    """Which layers of a float checkpoint are rounded, and to what.

    Args:
        choice: of the layers.
        search: choose the scales of weights by the squared error.
        scales: of activations.
    """

    names_layers: ClassVar[bool] = True
    rounds_floats: ClassVar[bool] = True

    def __init__(self, choice: Choice, search: bool, scales: ActivationScales | None) -> None:
        self.choice = choice
        self._schemes = {
            layer.key: OnlineScheme.make(
                scheme, search, {} if scales is None else scales.tensors(layer.name, scheme)
            )
            for layer, scheme in choice.chosen.values()
        }

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        scheme: str | QuantizeScheme,
        options: OnlineOptions,
        to_run: bool,
    ) -> OnlineConfig:
        """Choose the layers of a checkpoint; see `quantized_at_load`.

        Raises:
            CheckpointError: it is quantized already, or nothing is left to round.
            ConfigError: a scheme cannot be read, a name fits no layer, or scales are missing.
            MissingDependencyError: transformers is not installed.
        """
        main, head = QuantizeScheme.parse(scheme), options.lm_head_scheme
        head_scheme = None if head is None else QuantizeScheme.parse(head)
        check_float(checkpoint, "quantize=")
        choice = choose_layers(
            find_layers(checkpoint),
            main,
            head_scheme,
            targets=options.targets,
            ignore=options.ignore,
        )
        chosen = ((name, its_scheme) for name, (_, its_scheme) in choice.chosen.items())
        if to_run:
            check_scales(chosen, options.scales, at_load=True)
        return cls(choice, options.search, options.scales)

    @classmethod
    def get_name(cls) -> str:
        """online."""
        return "online"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OnlineConfig:
        """No checkpoint says this of itself."""
        raise CheckpointError(
            "quantize= rounds a float checkpoint at load; no checkpoint has the method 'online'"
        )

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> LinearScheme | None:
        """The scheme of a chosen layer."""
        return self._schemes.get(prefix)

    def tied_weights(self) -> Mapping[str, str]:
        """The head, where it has no weight of its own."""
        layers = (layer for layer, _ in self.choice.chosen.values())
        return {layer.key: layer.weight.name for layer in layers if layer.is_tied}

    def notes(self) -> Sequence[str]:
        """The layers that stay in float though nobody asked for it."""
        kept = [layer for layer in self.choice.kept if not layer.asked_for]
        return [f"{layer.name} is kept in float: {layer.reason}" for layer in kept]

    def describe(self) -> str:
        """The schemes."""
        schemes = dict.fromkeys(str(scheme) for _, scheme in self.choice.chosen.values())
        return f"float, rounded to {', '.join(schemes)} at load"


def quantized_at_load(
    checkpoint: Checkpoint,
    scheme: str | QuantizeScheme | None,
    options: OnlineOptions,
    *,
    to_run: bool = True,
) -> Checkpoint:
    """The checkpoint with the `OnlineConfig` as its method; as it is, without a scheme.

    Args:
        checkpoint: a float one.
        scheme: to round its layers to; None for not rounding them.
        options: what goes with the scheme.
        to_run: whether weights are going to be loaded, so that scales must be there.

    Raises:
        CheckpointError: it is quantized already, or nothing is left to round.
        ConfigError: a scheme cannot be read, a name fits no layer, scales are missing, or there are
            options without a scheme.
        MissingDependencyError: transformers is not installed.
    """
    if scheme is not None:
        return replace(
            checkpoint, quantization=OnlineConfig.of(checkpoint, scheme, options, to_run)
        )
    given = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    if given:
        raise ConfigError(f"{', '.join(given)}: of use only with quantize=")
    return checkpoint
