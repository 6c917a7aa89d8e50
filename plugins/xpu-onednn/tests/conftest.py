"""The kernels run here on SYCL's CPU device, in the place of an Intel GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["QCORE_XPU_STAND_IN"] = "1"
sys.path.append(str(Path(__file__).parent))  # for what several test modules share

from qcore_xpu import library


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "runs: loads oneDNN; skipped with a reason where it cannot")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("runs") and library.unusable_here() is not None:
            item.add_marker(pytest.mark.skip(reason=str(library.unusable_here())))
