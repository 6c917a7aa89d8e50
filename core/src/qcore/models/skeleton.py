"""Build a transformers model without weights: parameters on the meta device, buffers real.

Buffers that no checkpoint holds (rotary frequencies) are computed while the model is built; on the
meta device they would be lost.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any, cast

import torch

from qcore.errors import CheckpointError, MissingDependencyError
from qcore.models.safetensors_file import TensorInfo
from qcore.quantization.json_text import shown

__all__ = ["build_skeleton", "import_transformers", "model_dtype"]

_BUILDING = threading.RLock()

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_ORDERS = {
    # code of the checkpoint; transformers asks at the terminal whether to run it
    "auto_map",
    "trust_remote_code",
    # code of the hub: transformers fetches kernels where this is the name of a repository
    *(f"{sign}{of}_implementation" for sign in ("", "_") for of in ("attn", "experts")),
}

_COUNT = re.compile(
    r"^(num|n)_(?!.*(param|token|position|ctx))|(layers|heads|experts|labels|blocks|groups)$"
)
_MAX_COUNT = 1 << 20
_PARAMETERS, _PARAMETERS_PER_TENSOR = 4096, 4
_WEIGHTS, _WEIGHTS_PER_BYTE = 1 << 24, 16  # of one bit, tied weights counted twice
_MAX_BUFFERS = 1 << 30


def import_transformers() -> Any:
    """The module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            f"loading a model needs transformers ({error}): pip install 'qcore[models]'"
        ) from error


def model_dtype(config: Mapping[str, Any], device_type: str) -> torch.dtype:
    """The dtype to compute in, where the user does not say.

    It is the checkpoint's own; float32 where it says nothing, and float32 in place of float16 on a
    CPU: it holds every float16 value, and few processors multiply float16.

    Raises:
        CheckpointError: the checkpoint names none of float32, float16, bfloat16.
    """
    sources = (config, config.get("text_config"))
    stated = next(
        (
            source[key]
            for source in sources
            if isinstance(source, Mapping)
            for key in ("dtype", "torch_dtype")
            if source.get(key) is not None
        ),
        "float32",
    )
    dtype = _DTYPES.get(stated.removeprefix("torch.")) if isinstance(stated, str) else None
    if dtype is None:
        raise CheckpointError(
            f"config.json: dtype is {shown(stated)}; it must be float32, float16 or bfloat16"
        )
    return torch.float32 if dtype is torch.float16 and device_type == "cpu" else dtype


def build_skeleton(
    config: Mapping[str, Any],
    dtype: torch.dtype,
    tensors: Mapping[str, TensorInfo] | None = None,
) -> Any:
    """The model that ``config.json`` describes; its class is one of transformers' own.

    The model is first built with nothing but shapes. Only if it is about as large as the
    checkpoint, and its buffers are of a sane size, is it built with real buffers: a number in a
    config must not decide how much memory or time loading takes.

    Args:
        config: ``config.json``.
        dtype: of the parameters.
        tensors: of the checkpoint; None to trust the config.

    Raises:
        CheckpointError: transformers has no such class, or cannot build it from this config, or
            the model is far larger than the checkpoint.
        MissingDependencyError: transformers is not installed.
    """
    transformers = import_transformers()
    model_class = _model_class(transformers, config)
    _check_config(config, transformers.PretrainedConfig)
    plain = _without_orders(config)
    most = None if tensors is None else _PARAMETERS + _PARAMETERS_PER_TENSOR * len(tensors)
    try:
        with _BUILDING, _parameters_on_meta(most), _no_init_weights():
            if tensors is not None:
                _check_size(_build(model_class, plain, dtype, torch.device("meta")), tensors)
            model = _build(model_class, plain, dtype, None)
            model.tie_weights()
    except Exception as error:
        text = str(error)
        raise CheckpointError(
            f"config.json: transformers {transformers.__version__} cannot build "
            f"{model_class.__name__} from it: {type(error).__name__}: "
            f"{text if len(text) <= 1000 else text[:1000] + '...'}"
        ) from error
    return model.eval()


def _build(
    model_class: Any, plain: Mapping[str, Any], dtype: torch.dtype, device: torch.device | None
) -> Any:
    model_config = model_class.config_class.from_dict(deepcopy(dict(plain)))
    with contextlib.nullcontext() if device is None else device:
        return model_class._from_config(model_config, dtype=dtype)


def _check_config(config: Mapping[str, Any], config_class: type) -> None:
    """Refuse what transformers would take as it is and trip over, or run on with, later."""
    level: list[tuple[object, bool]] = [(config, True)]
    while level:
        below: list[tuple[object, bool]] = []
        for item, is_config in level:
            if isinstance(item, list):
                below += ((value, False) for value in item)
            if not isinstance(item, Mapping):
                continue
            for key, value in item.items():
                below.append((value, key.endswith("_config")))
                # Lists as long as these numbers are made.
                if type(value) is int and value > _MAX_COUNT and _COUNT.search(key):
                    raise CheckpointError(f"config.json: {key} is {value}, as in no model")
                if key == "model_type" and not isinstance(value, str):
                    raise CheckpointError(f"config.json: model_type is {shown(value)}, no name")
                # Fields become attributes, and would take the place of a method.
                method = key.startswith("__") or callable(getattr(config_class, key, None))
                if is_config and method:
                    raise CheckpointError(f"config.json: {shown(key)} cannot be a field")
        level = below


def _without_orders(values: Any) -> Any:
    """The config without what makes transformers look for code outside the checkpoint's class."""
    if isinstance(values, Mapping):
        return {k: _without_orders(v) for k, v in values.items() if k not in _ORDERS}
    return [_without_orders(v) for v in values] if isinstance(values, list) else values


def _check_size(model: Any, tensors: Mapping[str, TensorInfo]) -> None:
    nbytes = sum(buffer.nbytes for buffer in model.buffers())
    if nbytes > _MAX_BUFFERS:
        raise ValueError(f"its buffers would take {nbytes} bytes; at most {_MAX_BUFFERS} are made")
    weights = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(info.nbytes for info in tensors.values())
    if weights > _WEIGHTS + _WEIGHTS_PER_BYTE * stored:
        raise ValueError(f"it would have {weights} weights; the checkpoint has {stored} bytes")


def _model_class(transformers: Any, config: Mapping[str, Any]) -> Any:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            f"config.json: architectures is {shown(names)}; it must name the model's class"
        )
    try:
        found = getattr(transformers, names[0], None)
    except Exception as error:  # transformers imports its modules here
        raise CheckpointError(
            f"transformers.{shown(names[0])} cannot be imported: {error}"
        ) from error
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    more = (
        "; the checkpoint brings code of its own (auto_map), which qcore never runs"
        if config.get("auto_map")
        else "; a later version may have it"
    )
    raise CheckpointError(
        f"config.json: transformers {transformers.__version__} has no model class "
        f"{shown(names[0])}{more}"
    )


@contextlib.contextmanager
def _parameters_on_meta(most: int | None) -> Iterator[None]:
    """Put every parameter that this thread registers on the meta device, and count them.

    Args:
        most: how many a model may have; a `ValueError` ends the building of a larger one. None for
            any number.
    """
    register = torch.nn.Module.register_parameter
    builder = threading.get_ident()
    count = 0

    def register_on_meta(
        self: torch.nn.Module, name: str, param: torch.nn.Parameter | None
    ) -> None:
        nonlocal count
        if param is not None and threading.get_ident() == builder:
            count += 1
            if most is not None and count > 2 * most:  # it is built twice
                raise ValueError(f"it would have more than {most} parameters")
            if not param.is_meta:
                param = torch.nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _no_init_weights() -> contextlib.AbstractContextManager[Any]:
    """transformers' switch for building without random values, where this version has it."""
    try:
        found = import_module("transformers.initialization").no_init_weights
    except (ImportError, AttributeError):
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[Any]", found())
