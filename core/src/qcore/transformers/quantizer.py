"""`QcoreQuantizer`: the steps of `from_pretrained` at which transformers asks a quantizer.

transformers builds the model, loads what is not quantized, ties weights and sets the generation
config. qcore takes the quantized layers out before, and puts them in afterwards, one at a time,
with the code that `load_model` uses, so that both give the same bits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.facts.target import Target
from qcore.models.experts import ExpertsPlan
from qcore.models.kv_scales import attach_kv_scales
from qcore.models.load import (
    NOTES,
    Loader,
    check_act_dtype,
    check_kernels,
    current_device,
    place_of,
)
from qcore.models.plan import LinearPlan, LoadPlan, PlannedLayer, make_plan
from qcore.quantization.kernel_layer import KernelLayer
from qcore.transformers.config import QcoreConfig
from qcore.transformers.placeholder import Placeholder
from qcore.transformers.placement import check_device_map, device_of
from qcore.transformers.saving import tensors_to_save
from qcore.transformers.source import Source, open_source

__all__ = ["QcoreQuantizer"]

log = logging.getLogger("qcore.transformers")

_IGNORED = "_keys_to_ignore_on_load_unexpected"


class QcoreQuantizer(HfQuantizer):
    """Loads one model. transformers makes it from a `QcoreConfig`.

    Args:
        quantization_config: how kernels are selected.
    """

    quantization_config: QcoreConfig
    requires_calibration = False

    def __init__(self, quantization_config: QcoreConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.pre_quantized = True  # whatever transformers could make of the checkpoint's config
        self.source: Source | None = None
        self.plan = LoadPlan()
        self.device_map: Mapping[str, Any] | str | None = None
        self.dtype = torch.float32
        self._placeholders: list[Placeholder] = []
        self._ignored: Any = None
        self._settings = quantization_config.selection_settings()

    # -- before weights are loaded -------------------------------------------------------------

    def update_device_map(self, device_map: Any) -> Any:
        """Keep what the user asks for: a map, a way to make one, or None for the CPU."""
        self.device_map = device_map
        return device_map

    def validate_environment(self, *_args: Any, **kwargs: Any) -> None:
        """Take the map that transformers made; it is called a second time then."""
        made = kwargs.get("device_map")
        if self.source is None or not isinstance(made, Mapping):
            return
        self.device_map = made
        for placeholder in self._placeholders:
            placeholder.show_size(False)
        self._check_places()

    def _process_model_before_weight_loading(
        self,
        model: Any,
        dtype: torch.dtype | None = None,
        checkpoint_files: Sequence[str] | None = None,
        **_kwargs: Any,
    ) -> None:
        if getattr(model.config, "distributed_config", None) is not None:
            raise UnsupportedQuantizationError(
                "distributed_config (and tp_plan) split layers over processes, which qcore's "
                "loader does not; use device_map"
            )
        self.dtype = dtype or torch.get_default_dtype()
        with torch.device("cpu"):  # transformers has made "meta" the default here
            self.source = open_source(checkpoint_files)
            check_act_dtype(self.source.checkpoint, self.dtype)
            self.plan = make_plan(model, self.source.checkpoint, partial=True)
        self.quantization_config.checkpoint = dict(self.source.stated)
        self._placeholders = self._take_layers_out(model)
        if isinstance(self.device_map, str):
            for placeholder in self._placeholders:
                placeholder.show_size(True)
        else:
            self._check_places()

    def _take_layers_out(self, model: Any) -> list[Placeholder]:
        placeholders = [Placeholder(at.prefix, _size(at)) for at in self.plan.layers]
        for placeholder in placeholders:
            _set_module(model, placeholder.prefix, placeholder)
        if self.plan.untied:
            model.config.tie_word_embeddings = False
            for name in self.plan.untied:
                model.all_tied_weights_keys.pop(name, None)
        self._ignored = getattr(model, _IGNORED, None)
        kind = list if self._ignored is None else type(self._ignored)  # it differs by version
        setattr(model, _IGNORED, kind([*(self._ignored or ()), *self._ours(model)]))
        return placeholders

    def _ours(self, model: Any) -> set[str]:
        """Patterns of the tensors that are no parameters of what transformers loads."""
        plan = self.plan
        prefixes = [layer.prefix for layer in plan.layers]
        held = {*dict(_named(model)), *plan.unexpected}
        rest = [name for name in plan.named if name not in held]
        base = f"{model.base_model_prefix}."
        begun = rf"^({re.escape(base)})?"
        patterns = {rf"{begun}{re.escape(name.removeprefix(base))}\." for name in prefixes}
        every = re.compile("|".join(patterns) or "$^")
        return patterns | {
            rf"{begun}{re.escape(name.removeprefix(base))}$"
            for name in rest
            if not every.search(name)
        }

    def _check_places(self) -> None:
        """Check devices and kernels, while nothing is loaded yet."""
        assert not isinstance(self.device_map, str)
        names = [placeholder.prefix for placeholder in self._placeholders]
        check_device_map(names, self.device_map)
        for device in {device_of(name, self.device_map) for name in names}:
            here = {name for name in names if device_of(name, self.device_map) == device}
            part = LoadPlan(
                linears=[layer for layer in self.plan.linears if layer.prefix in here],
                experts=[layer for layer in self.plan.experts if layer.prefix in here],
            )
            check_kernels(part, self.dtype, self._target(device), self._settings)

    def _target(self, device: torch.device) -> Target:
        return place_of(device, self.quantization_config.target)[0]

    # -- after it ------------------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: Any, **_kwargs: Any) -> Any:
        assert self.source is not None
        setattr(model, _IGNORED, self._ignored)
        with torch.device("cpu"), torch.no_grad():
            for layer in self.plan.layers:
                _replace(model, layer.prefix, self._load(model, layer))
            if self.plan.kv_scales is not None:
                self.plan.notes += attach_kv_scales(model, self.plan.kv_scales)
        self._placeholders = []
        for note in self.plan.notes:
            log.warning("%s: %s", self.source.checkpoint.path, note)
        setattr(model, NOTES, tuple(self.plan.notes))
        model.requires_grad_(False)
        # Saving takes the checkpoint's own tensors, by the checkpoint's own names.
        model._weight_conversions = []
        return model

    def _load(self, model: Any, layer: PlannedLayer) -> KernelLayer:
        """Read a layer and pack it for its kernel, on its device."""
        assert not isinstance(self.device_map, str)
        device = device_of(layer.prefix, self.device_map)
        target = self._target(device)
        loader = Loader(model, self.plan, self.dtype, device, target, self._settings, None)
        with current_device(device):
            if isinstance(layer, LinearPlan):
                return loader.quantized(layer)
            return loader.experts(layer)

    # -- saving, and what else transformers asks ------------------------------------------------

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors of the checkpoint that the model came from, mapped from its files."""
        if self.source is None:
            raise CheckpointError("the model did not come from a checkpoint, so none is known")
        with torch.device("cpu"), torch.no_grad():
            found = tensors_to_save(
                model, self.source, self.plan, lambda layer: self._load(model, layer)
            )
        return found, {}

    def is_serializable(self, *_args: Any, **_kwargs: Any) -> bool:
        """Yes, as long as the source's files are there."""
        return True

    @property
    def is_trainable(self) -> bool:
        """No: kernels have no backward."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Yes: kernels are custom ops, or plain PyTorch."""
        return True

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        raise UnsupportedQuantizationError(
            "the weights are in the layouts of their kernels, so there is no way back to floats; "
            "load the float model that the checkpoint was made from"
        )


def _size(layer: PlannedLayer) -> int:
    """Bytes of a layer's tensors in the checkpoint."""
    if isinstance(layer, ExpertsPlan):
        return sum(_size(part) for expert in layer.experts for part in expert)
    return sum(info.nbytes for info in layer.tensors.values())


def _named(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _replace(model: Any, prefix: str, layer: torch.nn.Module) -> None:
    """Put a layer where its placeholder is, with the hook that accelerate gave that."""
    hook = getattr(model.get_submodule(prefix), "_hf_hook", None)
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(layer, hook)
    _set_module(model, prefix, layer)


def _set_module(model: Any, name: str, module: torch.nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
