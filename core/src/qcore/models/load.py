"""`load_model`: a quantized Hugging Face folder or GGUF file to a transformers model to run."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qcore.errors import (
    CheckpointError,
    NoKernelError,
    QcoreError,
    TargetError,
    UnsupportedQuantizationError,
    WeightError,
)
from qcore.facts.target import Target
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.gguf import GGUF_BLOCK_TYPES
from qcore.models.checkpoint import Checkpoint, open_checkpoint, read_json_object
from qcore.models.experts import ExpertsPlan, FusedExpertsPlan, JoinedPlan
from qcore.models.freed_memory import FreedMemory
from qcore.models.gguf_checkpoint import GGUFTensor
from qcore.models.kv_scales import attach_kv_scales
from qcore.models.plan import LinearPlan, LoadPlan, make_plan
from qcore.models.safetensors_file import TensorInfo, read_tensor, same_place
from qcore.models.skeleton import build_skeleton, import_transformers, model_dtype
from qcore.quantization.base import CanonicalLinear
from qcore.quantization.embedding import QuantizedEmbedding, embedding_scale
from qcore.quantization.experts import ExpertStack, QuantizedExperts
from qcore.quantization.kernel_layer import KernelLayer
from qcore.quantization.linear import QuantizedLinear
from qcore.quantize.activation_scales import ActivationScales
from qcore.quantize.online import OnlineOptions, quantized_at_load
from qcore.quantize.scheme import QuantizeScheme
from qcore.selection.algorithm import select
from qcore.settings import Settings

__all__ = [
    "NOTES",
    "Loader",
    "check_act_dtype",
    "check_kernels",
    "current_device",
    "load_model",
    "place_of",
]

log = logging.getLogger("qcore.models")

NOTES = "_qcore_notes"
"""Attribute of a loaded model: what the user should know, for `explain`."""

Progress = Callable[[int, int, str], None]


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    settings: Settings | None = None,
    target: Target | str | None = None,
    progress: Progress | None = None,
    gguf_file: str | None = None,
    quantize: str | QuantizeScheme | None = None,
    lm_head_scheme: str | QuantizeScheme | None = None,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    search: bool = True,
    scales: ActivationScales | None = None,
) -> Any:
    """Load a checkpoint. Each quantized layer gets the kernel that `qcore.select` chooses.

    Everything that can be checked without reading a weight is checked first: the configs, the
    shards' headers, each tensor's name, shape and dtype, and whether every layer has a kernel. Then
    one layer after the other is read, brought into its kernel's layout and put into the model, so
    that memory holds the model and one layer more. If anything fails, an error is raised and
    nothing is kept. No code of the checkpoint is run and no pickle is read.

    Args:
        path: a folder with ``config.json`` and safetensors files, or a GGUF file.
        device: where the model is to run; None for that of ``target``.
        dtype: of the activations and of the weights that are not quantized. None for the
            checkpoint's own, or on a CPU, where that is float16, float32.
        settings: for selection; None to read the environment.
        target: the machine to select for, if it is not what ``device`` says: a way to do without
            some of its features.
        progress: called after each step with the steps done, all steps, and the tensor's or layer's
            name.
        gguf_file: the name of the GGUF file, where ``path`` is a folder with several.
        quantize: round the linear layers of a float checkpoint to this scheme, one after the other
            as they are read: ``int4-g128``, ``int8``, ``fp8``, ``mxfp4`` and others of
            `qcore.quantize.scheme`. The result is that of loading what
            `qcore.quantize.quantize_checkpoint` would write.
        lm_head_scheme: with ``quantize``, for the layer that makes the logits; None to keep it.
        targets: with ``quantize``, the layers to round; none for all. Names of modules, or ``re:``
            and a regular expression that fits the beginning of the name.
        ignore: with ``quantize``, layers to keep, in the same way.
        search: with ``quantize``, choose the scales of weights by the squared error, where that
            helps; else by the largest magnitude, which is faster.
        scales: with ``quantize``, of activations, for a scheme that has calibrated ones;
            `qcore.quantize.calibrate` makes them.

    Returns:
        A `transformers.PreTrainedModel` in eval mode, without gradients. Its quantized layers are
        `QuantizedLinear`, the experts of its mixtures `QuantizedExperts`; `qcore.explain` says
        which kernel runs each and why.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, unsafe or contradictory, or it is
            quantized already and is to be quantized.
        ConfigError: ``quantize`` or what goes with it cannot be read.
        UnknownQuantizationError: its quantization method is not known.
        UnsupportedQuantizationError: the method, or its parameters, are not supported.
        NoKernelError: no kernel can run a layer.
        TargetError: the device is not here, or is not one of the target.
        MissingDependencyError: transformers is not installed.
    """
    import_transformers()
    target, place = place_of(device, target)
    options = OnlineOptions(lm_head_scheme, targets, ignore, search, scales)
    source = open_checkpoint(path, gguf_file)
    checkpoint = quantized_at_load(source, quantize, options)
    compute = _dtype(checkpoint, dtype, place)
    model = build_skeleton(source.config, compute, source.tensors)
    plan = make_plan(model, checkpoint)
    check_kernels(plan, compute, target, settings)
    if plan.kv_scales is not None:
        plan.notes += attach_kv_scales(model, plan.kv_scales)
    with torch.no_grad(), current_device(place):
        Loader(model, plan, compute, place, target, settings, progress).run()
    _finish(model, checkpoint, plan)
    return model


def place_of(
    device: str | torch.device | None, target: Target | str | None
) -> tuple[Target, torch.device]:
    """The target and the device, each from the other where it is not given.

    Raises:
        TargetError: the device is not here, or is not one of the target.
    """
    if isinstance(target, str):
        target = Target.parse(target)
    if target is None:
        target = Target.current(device)
        return target, torch.device(device) if device is not None else target.torch_device
    place = torch.device(device) if device is not None else target.torch_device
    here = Target.current(place)
    if here.platform is not target.platform:
        raise TargetError(
            f"device {str(place)!r} is {here}, but the target is {target}; a model can only be "
            "loaded for a machine that is here (qcore.models.inspect_checkpoint decides for others)"
        )
    return target, place


def _dtype(
    checkpoint: Checkpoint, dtype: torch.dtype | str | None, place: torch.device
) -> torch.dtype:
    if isinstance(dtype, str):
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(f"dtype {dtype!r} is not known; float32, float16 or bfloat16")
        dtype = found
    if dtype is None:
        dtype = model_dtype(checkpoint.config, place.type)
    check_act_dtype(checkpoint, dtype)
    return dtype


def check_act_dtype(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Check that the checkpoint's method allows activations of this dtype.

    Raises:
        UnsupportedQuantizationError: it does not; the message lists what it allows.
    """
    method = checkpoint.quantization
    if method is not None and dtype not in method.get_supported_act_dtypes():
        allowed = ", ".join(
            str(d).removeprefix("torch.") for d in method.get_supported_act_dtypes()
        )
        raise UnsupportedQuantizationError(
            f"{method.get_name()} with activations in {str(dtype).removeprefix('torch.')} is not "
            f"supported; supported: {allowed}"
        )


def check_kernels(
    plan: LoadPlan, dtype: torch.dtype, target: Target, settings: Settings | None
) -> None:
    """Check that every quantized layer has a kernel, before any weight is read.

    Raises:
        NoKernelError: a layer has none; the message names it.
    """
    promised: list[tuple[str, MMLinearLayerConfig]] = [
        (linear.prefix, linear.scheme.layer_config(linear.K, linear.N, dtype))
        for linear in plan.linears
    ]
    promised += [(experts.prefix, experts.layer_config(dtype)) for experts in plan.experts]
    for prefix, config in promised:
        try:
            _ = select(config, target, settings=settings).kernel_class
        except NoKernelError as error:
            error.args = (f"{prefix}:\n{error}",)
            raise


def current_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels that pack on a GPU do it on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Loader:
    """The part of loading that reads weights."""

    def __init__(
        self,
        model: Any,
        plan: LoadPlan,
        dtype: torch.dtype,
        device: torch.device,
        target: Target,
        settings: Settings | None,
        progress: Progress | None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.dtype = dtype
        self.device = device
        self.target = target
        self.settings = settings
        self.progress = progress
        self.freed = FreedMemory()
        self.done = 0
        self.total = len(plan.linears) + len(plan.experts) + len(plan.joined) + len(plan.parameters)

    def run(self) -> None:
        """Load everything."""
        for linear in self.plan.linears:
            self._set_module(linear.prefix, self.quantized(linear))
            self._report(linear.prefix)
        for experts in self.plan.experts:
            self._set_module(experts.prefix, self.experts(experts))
            self._report(experts.prefix)
        for joined in self.plan.joined:
            self._set_joined(joined)
            self._report(joined.name)
        for names, info in self.plan.parameters:
            if not self._set_embedding(names, info):
                self._set_tensor(names, info)
            self._report(names[0])
        self._move_buffers()
        self.freed.give_back(at_least=0)

    def _report(self, name: str) -> None:
        self.freed.give_back()
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, name)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        self.freed.add(info.nbytes)
        return read_tensor(info).to(self.device)

    def _canonical(self, linear: LinearPlan) -> CanonicalLinear:
        tensors = {name: self._read(info) for name, info in linear.tensors.items()}
        try:
            return linear.scheme.canonicalize(tensors, linear.K, linear.N, self.dtype)
        except QcoreError as error:
            raise CheckpointError(f"{linear.prefix}: {error}") from error

    def experts(self, plan: ExpertsPlan | FusedExpertsPlan) -> QuantizedExperts:
        """Read the experts of a mixture, and pack them."""
        layer = self._fused(plan) if isinstance(plan, FusedExpertsPlan) else self._stacked(plan)
        return QuantizedExperts(
            layer, prefix=plan.prefix, target=self.target, settings=self.settings
        )

    def _fused(self, plan: FusedExpertsPlan) -> CanonicalLinear:
        tensors = {name: self._read(info) for name, info in plan.tensors.items()}
        return plan.scheme.canonicalize(tensors, plan.layer_config(self.dtype))

    def _stacked(self, plan: ExpertsPlan) -> CanonicalLinear:
        stack = ExpertStack(plan.layer_config(self.dtype))
        for expert, layers in enumerate(plan.experts):
            for layer in layers:
                if layer.bias is not None and bool(self._read(layer.bias).any()):
                    raise CheckpointError(
                        f"{layer.prefix}.bias is not zero; experts with a bias are not supported"
                    )
            gate, up, down = (self._canonical(layer) for layer in layers)
            try:
                stack.add(expert, gate, up, down)
            except QcoreError as error:
                raise type(error)(f"{plan.prefix}: {error}") from error
        return stack.finish()

    def _set_joined(self, joined: JoinedPlan) -> None:
        parent, leaf = self._parent(joined.name)
        old = parent._parameters[leaf]
        assert old is not None
        dtype = self._param_dtype(joined.name, old)
        whole = torch.empty(old.shape, dtype=dtype, device=self.device)
        for rows, infos in zip(whole, joined.experts, strict=True):
            first = 0
            for info in infos.values():
                rows[first : first + info.shape[0]] = self._read(info)
                first += info.shape[0]
        parent._parameters[leaf] = torch.nn.Parameter(whole, requires_grad=False)

    def quantized(self, linear: LinearPlan) -> QuantizedLinear:
        """Read a quantized layer, and pack it."""
        return QuantizedLinear(
            self._canonical(linear),
            self._bias(linear),
            prefix=linear.prefix,
            target=self.target,
            settings=self.settings,
        )

    def _bias(self, linear: LinearPlan) -> torch.Tensor | None:
        if linear.bias is None:
            return None
        bias = self._read(linear.bias)
        if not linear.has_bias:
            # AutoGPTQ writes a bias of zeros for layers that have none.
            if not bool(bias.any()):
                return None
            self.plan.notes.append(
                f"{linear.prefix} has a bias in the checkpoint though not in the model's class; "
                "it is used"
            )
        return bias.to(self.dtype)

    def _parent(self, name: str) -> tuple[torch.nn.Module, str]:
        parent, _, leaf = name.rpartition(".")
        return self.model.get_submodule(parent), leaf

    def _set_module(self, name: str, module: torch.nn.Module) -> None:
        parent, leaf = self._parent(name)
        setattr(parent, leaf, module)

    def _set_embedding(self, names: tuple[str, ...], info: TensorInfo) -> bool:
        """Keep an embedding in its blocks, if it is stored so and nothing else holds its weight."""
        if len(names) > 1 or not isinstance(info, GGUFTensor) or info.qtype not in GGUF_BLOCK_TYPES:
            return False
        prefix, _, leaf = names[0].rpartition(".")
        module = self.model.get_submodule(prefix)
        able, scale = embedding_scale(module)
        if not able or leaf != "weight":
            return False
        blocks = self._read(info.in_blocks())
        for linear in self.plan.linears:
            if not any(same_place(info, other) for other in linear.tensors.values()):
                continue
            # The kernel may have packed it; where it has not, one tensor serves both.
            weight = getattr(self.model.get_submodule(linear.prefix), "weight", None)
            if isinstance(weight, torch.Tensor) and _equal(weight.data, blocks):
                blocks = weight.data
        dtype = self._param_dtype(names[0], module.weight)
        self._set_module(prefix, QuantizedEmbedding(blocks, info.qtype, dtype, scale))
        return True

    def _set_tensor(self, names: tuple[str, ...], info: TensorInfo) -> None:
        parent, leaf = self._parent(names[0])
        old = parent._parameters.get(leaf)
        if old is None:
            buffer = parent._buffers[leaf]
            assert buffer is not None
            parent._buffers[leaf] = self._read(info).to(buffer.dtype)
            return
        dtype = self._param_dtype(names[0], old)
        parameter = torch.nn.Parameter(
            self._read(info.with_dtype(dtype)).to(dtype), requires_grad=False
        )
        for name in names:
            owner, leaf = self._parent(name)
            owner._parameters[leaf] = parameter

    def _param_dtype(self, name: str, parameter: torch.Tensor) -> torch.dtype:
        """The dtype that the class gave it; float32 for what it wants kept so."""
        kept = set(getattr(self.model, "_keep_in_fp32_modules_strict", None) or ())
        if self.dtype is torch.float16:
            kept |= set(getattr(self.model, "_keep_in_fp32_modules", None) or ())
        if parameter.is_floating_point() and kept & set(name.split(".")):
            return torch.float32
        return parameter.dtype

    def _move_buffers(self) -> None:
        for module in self.model.modules():
            if isinstance(module, KernelLayer):
                continue
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


# -- the finished model ------------------------------------------------------------------------


def _finish(model: Any, checkpoint: Checkpoint, plan: LoadPlan) -> None:
    held = (*model.named_parameters(), *model.named_buffers())
    lost = [name for name, tensor in held if tensor.is_meta]
    if lost:
        raise CheckpointError(f"{checkpoint.path}: not loaded: {', '.join(lost[:6])}")
    if plan.untied:
        # So that transformers does not tie them again later.
        model.config.tie_word_embeddings = False
        for name in plan.untied:
            getattr(model, "all_tied_weights_keys", {}).pop(name, None)
    _generation_config(model, checkpoint)
    for note in plan.notes:
        log.warning("%s: %s", checkpoint.path, note)
    setattr(model, NOTES, tuple(plan.notes))
    if plan.linears or plan.experts:
        model.save_pretrained = _refuse_to_save


def _generation_config(model: Any, checkpoint: Checkpoint) -> None:
    file = checkpoint.path / "generation_config.json"
    if not file.is_file() or not model.can_generate():
        return
    values = read_json_object(file)
    try:
        model.generation_config = type(model.generation_config).from_dict(values)
    except Exception as error:
        raise CheckpointError(f"{file}: transformers cannot read it: {error}") from error


def _refuse_to_save(*_args: Any, **_kwargs: Any) -> None:
    raise WeightError(
        "the weights of this model are in the layouts of its kernels, which no checkpoint has; "
        "keep the folder that it was loaded from"
    )
