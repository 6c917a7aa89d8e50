"""Build a transformers model without weights: parameters on the meta device, buffers real.

Buffers that no checkpoint holds (rotary frequencies) are computed while the model is built; on the
meta device they would be lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any, cast

import torch

from qcore.errors import CheckpointError, MissingDependencyError

__all__ = ["build_skeleton", "import_transformers", "model_dtype"]

_BUILDING = threading.RLock()


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
    dtype = getattr(torch, str(stated).removeprefix("torch."), None)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(
            f"config.json: dtype is {stated!r}; it must be float32, float16 or bfloat16"
        )
    return torch.float32 if dtype is torch.float16 and device_type == "cpu" else dtype


def build_skeleton(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The model that ``config.json`` describes; its class is one of transformers' own.

    Raises:
        CheckpointError: transformers has no such class, or cannot build it from this config.
        MissingDependencyError: transformers is not installed.
    """
    transformers = import_transformers()
    model_class = _model_class(transformers, config)
    try:
        plain = deepcopy({k: v for k, v in config.items() if k != "auto_map"})
        model_config = model_class.config_class.from_dict(plain)
        with _BUILDING, _parameters_on_meta(), _no_init_weights():
            model = model_class._from_config(model_config, dtype=dtype)
            model.tie_weights()
    except Exception as error:
        raise CheckpointError(
            f"config.json: transformers {transformers.__version__} cannot build "
            f"{model_class.__name__} from it: {type(error).__name__}: {error}"
        ) from error
    return model.eval()


def _model_class(transformers: Any, config: Mapping[str, Any]) -> Any:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            f"config.json: architectures is {names!r}; it must name the model's class"
        )
    try:
        found = getattr(transformers, names[0], None)
    except Exception as error:  # transformers imports its modules here
        raise CheckpointError(f"transformers.{names[0]} cannot be imported: {error}") from error
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    more = (
        "; the checkpoint brings code of its own (auto_map), which qcore never runs"
        if config.get("auto_map")
        else "; a later version may have it"
    )
    raise CheckpointError(
        f"config.json: transformers {transformers.__version__} has no model class "
        f"{names[0]!r}{more}"
    )


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put every parameter that this thread registers on the meta device."""
    register = torch.nn.Module.register_parameter
    builder = threading.get_ident()

    def register_on_meta(
        self: torch.nn.Module, name: str, param: torch.nn.Parameter | None
    ) -> None:
        if param is not None and threading.get_ident() == builder and not param.is_meta:
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
