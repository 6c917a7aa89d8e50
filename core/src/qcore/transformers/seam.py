"""Where qcore enters transformers, and how it leaves again.

A quantizer and its config are registered by name, as transformers means it. That alone is not
enough for a checkpoint that is quantized already: transformers then takes the config from the
checkpoint, and refuses one of another class. `AutoHfQuantizer.merge_quantization_configs` decides
that, and it is the one function that is replaced here. The replacement does what the original does,
unless it is given a `QcoreConfig`, or qcore is enabled and knows the checkpoint's method.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from transformers.quantizers import auto

from qcore.errors import CheckpointError, RegistrationError, SettingsError
from qcore.quantization.methods import get_quantization_config, method_names
from qcore.transformers.config import METHOD, QcoreConfig
from qcore.transformers.quantizer import QcoreQuantizer

__all__ = ["Enabled", "disable", "enable", "enabled", "register", "unregister"]

_SEAM = "merge_quantization_configs"
_LOCK = threading.RLock()


@dataclass
class _State:
    """What was changed in transformers, and what qcore is enabled with."""

    original: Any = None
    default: QcoreConfig | None = None
    added: tuple[str, ...] = ()


_STATE = _State()


def register() -> None:
    """Register the method ``qcore`` with transformers. Importing `qcore.transformers` does it.

    Raises:
        RegistrationError: another distribution has taken the name.
    """
    with _LOCK:
        if _STATE.original is not None:
            return
        taken = [
            table[METHOD]
            for table in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
            if METHOD in table
        ]
        if taken:
            raise RegistrationError(
                f"transformers has a quantization method {METHOD!r} already: {taken[0]}"
            )
        auto.register_quantizer(METHOD)(QcoreQuantizer)
        auto.register_quantization_config(METHOD)(QcoreConfig)
        _STATE.original = auto.AutoHfQuantizer.__dict__[_SEAM]
        setattr(auto.AutoHfQuantizer, _SEAM, classmethod(_merge))


def unregister() -> None:
    """Undo `register` and `enable`: transformers is as it was."""
    with _LOCK:
        if _STATE.original is None:
            return
        disable()
        setattr(auto.AutoHfQuantizer, _SEAM, _STATE.original)
        _STATE.original = None
        auto.AUTO_QUANTIZER_MAPPING.pop(METHOD, None)
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING.pop(METHOD, None)


def _merge(
    cls: Any,
    quantization_config: Any,
    quantization_config_from_args: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The config to load with, from the checkpoint's and the user's."""
    asked = quantization_config_from_args
    if asked is None and isinstance(quantization_config, Mapping) and _knows(quantization_config):
        asked = _STATE.default
    if isinstance(asked, QcoreConfig):
        stated = quantization_config
        return asked.of_checkpoint(stated if isinstance(stated, Mapping) else stated.to_dict())
    original = _STATE.original.__get__(None, cls)
    return original(quantization_config, quantization_config_from_args, *args, **kwargs)


def _knows(stated: Mapping[str, Any]) -> bool:
    """Whether qcore has the method; its parameters are looked at when it loads."""
    name = stated.get("quant_method")
    if name is None and (stated.get("load_in_8bit") or stated.get("load_in_4bit")):
        name = "bitsandbytes"
    try:
        get_quantization_config(str(name))
    except CheckpointError:
        return False
    return True


# -- enabled ------------------------------------------------------------------------------------


class Enabled:
    """What `enable` returns: a context manager whose end brings back what was before."""

    def __init__(self, before: QcoreConfig | None) -> None:
        self._before = before

    def __enter__(self) -> Enabled:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        _set_default(self._before)


def enable(config: QcoreConfig | None = None) -> Enabled:
    """Have `from_pretrained` run every checkpoint whose method qcore knows through qcore.

    A model that names a ``quantization_config`` of its own gets that one. It holds for all threads
    of the process until `disable`, or as a context manager until its end.

    Args:
        config: how kernels are selected.

    Raises:
        SettingsError: ``config`` is no `QcoreConfig`.
    """
    if config is not None and not isinstance(config, QcoreConfig):
        raise SettingsError(f"enable takes a QcoreConfig or nothing, not {config!r}")
    with _LOCK:
        register()
        before = _STATE.default
        _set_default(QcoreConfig() if config is None else config)
    return Enabled(before)


def disable() -> None:
    """Undo `enable`, however often it was called."""
    _set_default(None)


def enabled() -> bool:
    """Whether `enable` is in force."""
    return _STATE.default is not None


def _set_default(config: QcoreConfig | None) -> None:
    """Set the default; transformers must know the names of the methods that only qcore has."""
    table = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    with _LOCK:
        for name in _STATE.added:
            table.pop(name, None)
        _STATE.added = ()
        if config is not None:
            _STATE.added = tuple(name for name in method_names() if name not in table)
            table.update(dict.fromkeys(_STATE.added, QcoreConfig))
        _STATE.default = config
