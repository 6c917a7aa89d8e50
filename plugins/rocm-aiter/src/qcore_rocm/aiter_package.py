"""AMD's package ``aiter``: whether its functions can be called, and which shapes it is tuned for.

Importing it can raise anything: it looks for ROCm's version file, asks ``rocminfo`` for the GPU and
compiles. So it is imported when a kernel is asked on this machine, and what it raised is reported.
Its tables of tuned shapes are files, which are read without importing it.
"""

from __future__ import annotations

import csv
import inspect
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer

from qcore_rocm import launching, library

__all__ = ["FUNCTIONS", "function", "installed", "missing", "supported", "tuned_shapes", "untuned"]

FUNCTIONS = {
    "gemm_a8w8_CK": ("XQ", "WQ", "x_scale", "w_scale", "bias", "dtype"),
    "gemm_a8w8_bpreshuffle": ("XQ", "WQ", "x_scale", "w_scale", "bias", "dtype"),
    "gemm_a8w8_blockscale": ("XQ", "WQ", "x_scale", "w_scale", "dtype"),
}
"""What is called, and the first of its parameters."""

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
def missing(name: str) -> str | None:
    """Why one of `FUNCTIONS` cannot be called as it is here; None where it can."""
    try:
        package = import_module("aiter")
    except (Exception, SystemExit) as error:
        return f"importing aiter raised {type(error).__name__}: {error}"
    found = getattr(package, name, None)
    if found is None:
        version = getattr(package, "__version__", "installed")
        return f"aiter {version} has no {name}"
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # of a compiled function nothing can be read
        return None
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return None  # a wrapper that does not say
    wanted = FUNCTIONS[name]
    if tuple(parameters)[: len(wanted)] != wanted:
        return f"aiter.{name} takes ({', '.join(parameters)}); ({', '.join(wanted)}, ...) is called"
    return None


def supported(name: str) -> Answer:
    """Whether the package's function can be called on the target being weighed."""
    here = current_platform.target.is_current
    return answer(
        here and not launching.stands_in() and library.unusable_here(), here and missing(name)
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
