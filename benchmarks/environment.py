"""What a benchmark's result file says about the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import qcore
import torch

__all__ = ["environment"]


def environment(*packages: str) -> dict[str, Any]:
    """Machine, versions, commit and time, as plain values.

    Args:
        packages: distributions whose versions matter besides torch and qcore.
    """
    versions = {}
    for package in ("torch", "qcore", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "target": qcore.Target.current().describe(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
    }


def _commit() -> str | None:
    """That of the checkout; ``QCORE_COMMIT`` names it where the files are a copy."""
    if named := os.environ.get("QCORE_COMMIT"):
        return named
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip() or None
