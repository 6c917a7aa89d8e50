"""Every test runs with the widest instruction set and two threads, unless it asks for others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from qcore_cpu import library

sys.path.insert(0, str(Path(__file__).parent))  # for cpu_oracle, in every import mode of pytest

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512_bf16", "amx", "neon")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    library.load()
    isa, threads = library.isa(), torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    library.set_isa(isa)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    if request.param not in library.supported_isas():
        pytest.skip(f"this processor cannot run {request.param}")
    library.set_isa(request.param)
    return str(request.param)
