"""The quantization methods: the core's own and those of plugins, by name, imported when used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qcore.errors import (
    CheckpointError,
    RegistrationError,
    UnknownQuantizationError,
    UnsupportedQuantizationError,
)
from qcore.quantization.base import QuantizationConfig
from qcore.quantization.json_text import shown
from qcore.quantization.name_patterns import pattern_allowance
from qcore.registry.discovery import get_registry
from qcore.selection.nearest import nearest

__all__ = [
    "get_quantization_config",
    "method_names",
    "quantization_methods",
    "read_quantization_config",
]

_MAX_NAME = 100

log = logging.getLogger("qcore.quantization")

_OWN = {
    "gptq": "qcore.quantization.gptq:GPTQConfig",
    "awq": "qcore.quantization.awq:AWQConfig",
    "compressed-tensors": "qcore.quantization.compressed_tensors:CompressedTensorsConfig",
    "fp8": "qcore.quantization.fp8:Fp8Config",
    "fbgemm_fp8": "qcore.quantization.fbgemm_fp8:FBGEMMFp8Config",
    "modelopt": "qcore.quantization.modelopt:ModelOptConfig",
    "bitsandbytes": "qcore.quantization.bitsandbytes:BitsAndBytesConfig",
    "hqq": "qcore.quantization.hqq:HQQConfig",
    "torchao": "qcore.quantization.torchao:TorchAOConfig",
    "quanto": "qcore.quantization.quanto:QuantoConfig",
    "mxfp4": "qcore.quantization.mxfp4:Mxfp4Config",
    "auto-round": "qcore.quantization.auto_round:AutoRoundConfig",
}

_ALIASES = {
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "modelopt_mxfp8": "modelopt",
    "intel/auto-round": "auto-round",
}
"""Other names of the core's methods; the config says the rest."""

_REFUSED = {
    "gguf": "of a folder; give the .gguf file itself",
    **dict.fromkeys(("aqlm", "bitnet", "eetq", "fp_quant", "higgs", "quark", "spqr", "vptq"), ""),
}
"""Methods that exist, and why they are not here."""


def quantization_methods() -> dict[str, str]:
    """Every method: name -> ``module:Class``. The core's own names cannot be taken."""
    return {**get_registry().quantization_methods(), **_OWN}


def method_names() -> tuple[str, ...]:
    """Every name that a checkpoint may give a method."""
    return (*quantization_methods(), *_ALIASES)


def get_quantization_config(name: str) -> type[QuantizationConfig]:
    """The class of a method.

    Args:
        name: as in a checkpoint's ``quant_method``.

    Raises:
        UnsupportedQuantizationError: the method exists, but not here.
        UnknownQuantizationError: nobody registered it.
        RegistrationError: a plugin registered something that is no method, or cannot be imported.
    """
    if len(name) > _MAX_NAME:
        raise UnknownQuantizationError(f"no quantization method is called {shown(name)}")
    methods = quantization_methods()
    folded = _folded(name)
    by_name = {_folded(known): known for known in methods}
    for alias, own in _ALIASES.items():
        by_name.setdefault(_folded(alias), own)
    if folded in by_name:
        return _load(by_name[folded], methods[by_name[folded]])
    supported = ", ".join(sorted(methods))
    for known, hint in _REFUSED.items():
        if _folded(known) == folded:
            more = f" ({hint})" if hint else ""
            raise UnsupportedQuantizationError(
                f"the quantization method {name!r} is not supported{more}; supported: {supported}"
            )
    raise UnknownQuantizationError(
        f"no quantization method is called {name!r}{nearest(name, list(methods))}; there are: "
        f"{supported}. A plugin can add one with the hook qcore_quantization_methods"
    )


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")


def _load(name: str, entry: str) -> type[QuantizationConfig]:
    module, _, attribute = entry.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise RegistrationError(
            f"quantization method {name!r}: {entry} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, QuantizationConfig)):
        raise RegistrationError(
            f"quantization method {name!r}: {entry} is no child of QuantizationConfig"
        )
    return found


def read_quantization_config(config: Mapping[str, Any]) -> QuantizationConfig:
    """The method of a ``quantization_config``, with its parameters.

    Plugins' methods are asked first whether they claim it; then its ``quant_method`` counts; then
    the core's own methods are asked, for files older than that field.

    Raises:
        CheckpointError: it cannot be read, names no method, or one that is not supported.
    """
    name = _claimed(config, list(get_registry().quantization_methods()))
    if name is None:
        stated = config.get("quant_method")
        if stated is not None and not isinstance(stated, str):
            raise CheckpointError(
                f"quantization_config: quant_method is {shown(stated)}, not a string"
            )
        name = stated or _claimed(config, list(_OWN))
    if name is None:
        fields = ", ".join(str(field)[:40] for field in list(config)[:8])
        raise CheckpointError(
            f"quantization_config names no quant_method, and its fields ({fields}) are those of no "
            "known method"
        )
    with pattern_allowance():
        return get_quantization_config(name).from_config(config)


def _claimed(config: Mapping[str, Any], names: list[str]) -> str | None:
    for name in names:
        try:
            claimed = get_quantization_config(name).override_quantization_method(config, None)
        except Exception as error:  # one broken plugin must not keep others from loading
            log.warning("quantization method %r cannot be asked: %s", name, error)
            continue
        if claimed is not None:
            return claimed
    return None
