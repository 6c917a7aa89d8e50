"""What every plugin of this repository declares, whether it is installed here or not.

A plugin's module of declarations imports nothing of its library, so it can be read out of its
source folder: the compiled part, the vendor's package and the hardware may all be missing.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from qcore.plugin import KernelSpec
from qcore.registry import RegisteredKernel

__all__ = ["declared_kernels", "plugin_folders"]

ROOT = Path(__file__).resolve().parents[1]
_ENTRY_POINT = re.compile(r'^\[project\.entry-points\."qcore\.plugins"\]\n(\w+) = "([\w.]+)"', re.M)
_NAME = re.compile(r'^name = "([\w-]+)"', re.M)


def plugin_folders() -> list[Path]:
    """The core's folder and those of the plugins."""
    return [ROOT / "core", *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]


@lru_cache(maxsize=1)
def declared_kernels() -> tuple[RegisteredKernel, ...]:
    """Every kernel, in the order in which the registry has them: by type, best first."""
    found = []
    for folder in plugin_folders():
        project = (folder / "pyproject.toml").read_text(encoding="utf-8")
        point, name = _ENTRY_POINT.search(project), _NAME.search(project)
        if point is None or name is None:
            raise ValueError(f"{folder.name}/pyproject.toml has no name, or no plugin of qcore")
        for spec in _specs(folder, point[2]):
            found.append(RegisteredKernel(spec, point[1], name[1]))
    return tuple(sorted(found, key=lambda k: (-k.spec.priority, k.distribution, k.name)))


def _specs(folder: Path, module: str) -> list[KernelSpec]:
    source = str(folder / "src")
    sys.path.insert(0, source)
    try:
        return list(import_module(module).qcore_kernels())
    finally:
        sys.path.remove(source)
