"""Skip, with a reason, what this machine cannot run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from qcore.errors import MissingDependencyError
from qcore_cuda import library

sys.path.append(str(Path(__file__).parent))  # for what several test modules share


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = library.unusable_here()
    for item in items:
        if reason is not None and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(0)


@pytest.fixture
def compiled_library() -> None:
    """Skips where the library is not there: its schemas and fakes need no GPU."""
    try:
        library.load()
    except MissingDependencyError as error:
        pytest.skip(str(error))
