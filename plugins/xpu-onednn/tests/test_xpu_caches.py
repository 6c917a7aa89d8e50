"""Primitives are kept, not without end; the kernel compiled at run time is kept too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qcore_xpu import library, ops
from qcore_xpu.ops.matmul import matmul

pytestmark = pytest.mark.runs


def product(M: int, N: int = 8) -> None:
    matmul(torch.empty(M, N), torch.ones(M, 16), torch.ones(N, 16))


def test_a_shape_is_kept_once() -> None:
    library.load()
    product(3)
    before = torch.ops.qcore_xpu.cached_primitives()
    product(3)
    assert torch.ops.qcore_xpu.cached_primitives() == before


def test_the_oldest_make_room() -> None:
    library.load()
    most = torch.ops.qcore_xpu.most_primitives()
    for M in range(1, most + 40):
        product(M)
        assert torch.ops.qcore_xpu.cached_primitives() <= most
    assert torch.ops.qcore_xpu.cached_primitives() == most
    product(1)  # was dropped; made again
    assert ops.last_implementation().startswith("onednn")


def test_the_kernel_is_compiled_once_in_a_process() -> None:
    with ops.using("sycl"):
        for M in (2, 5, 70):
            product(M)
    assert torch.ops.qcore_xpu.compiled_kernels() == 1  # there is one device


def test_sycl_keeps_it_on_disk_if_asked(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom qcore_xpu import ops\nfrom qcore_xpu.ops.matmul import matmul\n"
        "with ops.using('sycl'):\n"
        "    print(float(matmul(torch.empty(1, 1), torch.ones(1, 4), torch.ones(1, 4))))"
    )
    environment = {
        **os.environ,
        "SYCL_CACHE_PERSISTENT": "1",
        "SYCL_CACHE_DIR": str(tmp_path),
    }
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "4.0"
    assert any(path.is_file() for path in tmp_path.rglob("*"))
