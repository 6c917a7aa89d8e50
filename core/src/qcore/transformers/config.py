"""`QcoreConfig`: what ``quantization_config=`` of `from_pretrained` takes to ask for qcore."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from qcore.errors import SettingsError
from qcore.facts.target import Target
from qcore.settings import Settings

__all__ = ["METHOD", "QcoreConfig"]

METHOD = "qcore"
"""The ``quant_method`` that is registered with transformers."""


@dataclass
class QcoreConfig(QuantizationConfigMixin):
    """Run a quantized checkpoint through qcore.

    How the checkpoint is quantized is read from the checkpoint, and saving writes that again;
    the fields say how kernels are selected, and are not saved.

    Args:
        settings: for selection; None to read the environment.
        target: the machine to select for, if it is not what the device says: a way to do without
            some of its features.
        disabled_kernels: class names that must not be chosen, besides those of the settings.
        checkpoint: what the checkpoint says about its quantization. Loading fills it in.

    Raises:
        SettingsError: a field has a value that is not allowed.
        TargetError: ``target`` cannot be read.
    """

    quant_method: Any = field(default=METHOD, init=False, repr=False)
    settings: Settings | None = None
    target: str | Target | None = None
    disabled_kernels: tuple[str, ...] = ()
    checkpoint: dict[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.settings is not None and not isinstance(self.settings, Settings):
            raise SettingsError(
                f"QcoreConfig: settings is a {type(self.settings).__name__}; it must be a "
                "qcore.Settings, or None"
            )
        names = self.disabled_kernels
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise SettingsError(
                f"QcoreConfig: disabled_kernels is {names!r}; it must be a list of class names"
            )
        self.disabled_kernels = tuple(names)
        if self.target is not None:
            self.target = Target.parse(self.target)

    def selection_settings(self) -> Settings:
        """The settings, with the kernels of ``disabled_kernels`` disabled."""
        settings = Settings.from_env() if self.settings is None else self.settings
        if not self.disabled_kernels:
            return settings
        sources = dict(settings.sources)
        named = (sources.get("disabled_kernels"), "QcoreConfig.disabled_kernels")
        sources["disabled_kernels"] = " and ".join(filter(None, named))
        disabled = settings.disabled_kernels | set(self.disabled_kernels)
        return replace(settings, disabled_kernels=disabled, sources=tuple(sources.items()))

    def of_checkpoint(self, checkpoint: Mapping[str, Any] | None) -> QcoreConfig:
        """A copy for a checkpoint that says this about its quantization."""
        return replace(self, checkpoint=None if checkpoint is None else deepcopy(dict(checkpoint)))

    # -- what transformers asks for ------------------------------------------------------------

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A config from a checkpoint's ``quantization_config``; ``kwargs`` are fields."""
        own = {f.name for f in fields(cls) if f.init}
        known = {name: value for name, value in kwargs.items() if name in own}
        rest = {name: value for name, value in kwargs.items() if name not in own}
        checkpoint = None if config_dict.get("quant_method") == METHOD else dict(config_dict)
        config = cls(**{"checkpoint": checkpoint, **known})
        return (config, rest) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """What the checkpoint says, so that any engine can read a saved model."""
        if self.checkpoint is None:
            return {"quant_method": METHOD}
        return deepcopy(self.checkpoint)

    def __repr__(self) -> str:
        values = [(f.name, getattr(self, f.name)) for f in fields(self) if f.repr]
        stated = [f"{name}={value!r}" for name, value in values if value not in (None, ())]
        return f"QcoreConfig({', '.join(stated)})"
