"""Every launch of Triton's kernels is compiled, to the end, for architectures that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TARGETS = {
    "cuda:80": {"mma.sync"},
    "cuda:90": {"mma.sync", "wgmma.mma_async"},
    "cuda:100": {"mma.sync", "tcgen05.mma"},
    "cuda:120": {"mma.sync"},
    "hip:gfx942": {"v_mfma"},
    "hip:gfx950": {"v_mfma"},
    "hip:gfx1201": {"v_wmma"},
}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_compiles(target: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("triton_aot.py")
    done = subprocess.run(
        [sys.executable, str(program), target],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [line for line in lines if "error" in line]
    assert not failed
    products = [
        line for line in lines if (line["launch"] and "block" in line["kernel"]) or line["mma"]
    ]
    assert len(products) > 30
    assert set().union(*(line["mma"] for line in lines)) == TARGETS[target]
