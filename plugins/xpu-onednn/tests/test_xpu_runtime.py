"""Loading: which library, whose, and why it does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qcore.errors import MissingDependencyError
from qcore_xpu import library, ops, runtime


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "LIBRARIES", (("libnowhere.so.7", "no-such-package"),))
    with pytest.raises(MissingDependencyError, match=r"libnowhere\.so\.7.*no-such-package is not"):
        runtime.load()


def test_a_broken_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(runtime, "LIBRARIES", (("libbroken.so", "x"),))
    monkeypatch.setattr(runtime, "where", lambda name, distribution: broken)
    with pytest.raises(MissingDependencyError, match=r"it is at .*libbroken\.so.*(short|header)"):
        runtime.load()


def test_where_knows_installed_files_only() -> None:
    assert runtime.where("libdnnl.so.3", "no-such-package") is None
    assert runtime.where("no-such-file", "pytest") is None


def test_the_users_opencl_drivers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCL_ICD_FILENAMES", "mine.so")
    monkeypatch.setattr(runtime, "LIBRARIES", ())
    runtime.load()
    assert os.environ["OCL_ICD_FILENAMES"] == "mine.so"


def test_no_driver_is_set_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCL_ICD_FILENAMES", raising=False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(runtime, "LIBRARIES", ())
    runtime.load()
    assert "OCL_ICD_FILENAMES" not in os.environ


@pytest.mark.runs
def test_a_library_in_the_process_is_taken() -> None:
    """Loaded once; afterwards the files are not looked for."""
    code = (
        "from qcore_xpu import library, runtime\n"
        "library.load()\n"
        "runtime.where = lambda *_: 1 / 0\n"
        "runtime.load()\n"
        "print('once')"
    )
    environment = {**os.environ, "OCL_ICD_FILENAMES": str(runtime.where(*runtime._OPENCL_CPU))}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert out.stdout.strip() == "once"


@pytest.mark.runs
def test_without_a_cpu_device_it_says_so() -> None:
    code = (
        "import torch\nfrom qcore_xpu import ops\n"
        "x = torch.zeros(2, 8)\n"
        "ops.int8_gemm(x.to(torch.int8), x.to(torch.int8).t(), torch.ones(1), None, torch.ones(1),"
        " torch.float32, None)"
    )
    environment = {**os.environ, "OCL_ICD_FILENAMES": "nothing.so"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "OCL_ICD_FILENAMES must name libintelocl.so" in done.stderr


@pytest.mark.runs
def test_a_queue_is_handed_over_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's current queue is on a GPU; here one of SYCL's CPU device has torch's part."""
    from qcore_xpu.ops import matmul as module

    library.load()
    address = torch.ops.qcore_xpu.cpu_queue()
    assert address != 0
    monkeypatch.setattr(module, "_queue_of", lambda x: address)
    a, b = torch.randn(3, 16), torch.randn(8, 16)
    for path in ("auto", "sycl"):
        with ops.using(path):
            out = module.matmul(torch.empty(3, 8), a, b)
        torch.testing.assert_close(out, a @ b.t())


def test_the_queue_is_that_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcore_xpu.ops.matmul import _queue_of

    class Stream:
        sycl_queue = 1234

    class OnGpu:
        device = torch.device("xpu", 1)

    asked = []
    monkeypatch.setattr(torch.xpu, "current_stream", lambda device: asked.append(device) or Stream)
    assert _queue_of(OnGpu()) == 1234  # type: ignore[arg-type]
    assert asked == [torch.device("xpu", 1)]
    assert _queue_of(torch.zeros(1)) == 0
