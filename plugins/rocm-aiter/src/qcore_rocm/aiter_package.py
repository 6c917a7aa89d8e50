"""AMD's package ``aiter``: whether its functions can be called, and which shapes it is tuned for.

Importing it can raise anything: it looks for ROCm's version file, asks ``rocminfo`` for the GPU and
compiles. So it is imported when a kernel is asked on this machine, and what it raised is reported.
Its tables of tuned shapes are files, which are read without importing it.

Parameters are those of amd-aiter 0.1.7.post2.dev18 and of AITER's source at e4048607 (August 2026).
"""

from __future__ import annotations

import csv
import inspect
from contextlib import nullcontext
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from qcore.errors import ConfigError
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer

from qcore_rocm import launching, library

__all__ = [
    "FUNCTIONS",
    "function",
    "installed",
    "missing",
    "parameters",
    "start_hipblaslt",
    "supported",
    "tuned_shapes",
    "untuned",
]

FUNCTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gemm_a8w8_CK": (("XQ", "WQ", "x_scale", "w_scale", "bias", "dtype"),),
    "gemm_a8w8_bpreshuffle": (("XQ", "WQ", "x_scale", "w_scale", "bias", "dtype"),),
    "gemm_a8w8_blockscale": (("XQ", "WQ", "x_scale", "w_scale", "dtype"),),
    "gemm_a4w4": (
        ("A", "B", "A_scale", "B_scale", "bias", "dtype"),
        ("A", "B", "A_scale", "B_scale", "out", "bias"),  # as 0.1.7 has it
    ),
    "hipb_create_extension": ((),),
    "hipb_mm": (
        (
            *("mat1", "mat2", "solution_index", "bias", "out_dtype"),
            *("scaleA", "scaleB", "scaleOut", "bpreshuffle"),
        ),
    ),
}
"""What is called, and the first of its parameters: one form, or several where releases differ."""

_TABLES = {
    "gemm_a8w8_CK": "a8w8_tuned_gemm.csv",
    "gemm_a8w8_bpreshuffle": "a8w8_bpreshuffle_tuned_gemm.csv",
    "gemm_a8w8_blockscale": "a8w8_blockscale_tuned_gemm.csv",
}


def _folders() -> list[str]:
    """Where the package lies; it is not imported."""
    try:
        spec = find_spec("aiter")
    except (ImportError, ValueError, AttributeError):
        return []
    return list((spec and spec.submodule_search_locations) or ())


def installed() -> bool:
    """Whether there is such a package."""
    return bool(_folders())


def function(name: str) -> Any:
    """One of `FUNCTIONS`; the package is imported."""
    return getattr(import_module("aiter"), name)


@lru_cache(maxsize=16)
def parameters(name: str) -> tuple[str, ...] | None:
    """What one of `FUNCTIONS` takes, by name; None where the package does not say.

    AITER makes some of its functions ops of torch, behind a wrapper that takes anything; there the
    op's schema says it.
    """
    try:
        found = inspect.signature(function(name)).parameters
    except (TypeError, ValueError):  # of a compiled function nothing can be read
        return None
    if not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found.values()):
        return tuple(found)
    op = getattr(torch.ops.aiter, name, None)
    if op is None:
        return None
    return tuple(argument.name for argument in op.default._schema.arguments)


@lru_cache(maxsize=16)
def missing(name: str) -> str | None:
    """Why one of `FUNCTIONS` cannot be called as it is here; None where it can."""
    try:
        package = import_module("aiter")
    except (Exception, SystemExit) as error:
        return f"importing aiter raised {type(error).__name__}: {error}"
    if getattr(package, name, None) is None:
        version = getattr(package, "__version__", "installed")
        return f"aiter {version} has no {name}"
    forms = FUNCTIONS[name]
    found = parameters(name)
    if found is None:
        return None if len(forms) == 1 else f"aiter.{name} does not say what it takes"
    if any(found[: len(form)] == form for form in forms):
        return None
    called = " or ".join(f"({', '.join((*form, '...'))})" for form in forms)
    return f"aiter.{name} takes ({', '.join(found)}); {called} is called"


def supported(*names: str) -> Answer:
    """Whether the package's functions can be called on the target being weighed."""
    if not current_platform.target.is_current:
        return answer()
    unusable = None if launching.stands_in() else library.unusable_here()
    return answer(unusable, next(filter(None, map(missing, names)), None))


_hipblaslt: list[torch.device] = []
_lock = Lock()


def start_hipblaslt(device: torch.device) -> None:
    """Have AITER make the handle and the workspace that ``hipb_mm`` works with, once.

    AITER keeps one of each for a process, on the device that was current when they were made.

    Args:
        device: that of the product.

    Raises:
        ConfigError: they are on another device.
    """
    if not _hipblaslt:
        with _lock:
            if not _hipblaslt:
                with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                    function("hipb_create_extension")()
                _hipblaslt.append(device)
    if _hipblaslt[0] != device:
        raise ConfigError(
            f"aiter's hipb_mm works on one device of a process, {_hipblaslt[0]}; this layer is on "
            f"{device}. Disable the AiterHipbMM kernels, or run a process for each device"
        )


@lru_cache(maxsize=16)
def tuned_shapes(name: str, dtype: str | None = None) -> frozenset[tuple[int, int]] | None:
    """The (N, K) that the installed package has tuned a function for; None where it is not known.

    Args:
        name: one of `FUNCTIONS`.
        dtype: of the weights, as its tables write it (``torch.int8``); None for any.
    """
    shapes: set[tuple[int, int]] = set()
    read = False
    for folder in _folders():
        configs = Path(folder) / "configs"
        table = _TABLES[name]
        models = sorted((configs / "model_configs").glob(f"{Path(table).stem}*.csv"))
        for path in (configs / table, *models):
            try:
                with open(path, encoding="utf-8", newline="") as lines:
                    for row in csv.DictReader(lines):
                        if dtype is None or row.get("q_dtype_w", dtype) == dtype:
                            shapes.add((int(row["N"]), int(row["K"])))
                read = True
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return frozenset(shapes) if read else None


def untuned(name: str, N: int, K: int, dtype: str | None = None) -> str | None:
    """A reason where the installed package has tuned other shapes than this one."""
    shapes = tuned_shapes(name, dtype)
    if shapes is None or (N, K) in shapes:
        return None
    return f"aiter has no tuned {name} for N={N}, K={K}"
