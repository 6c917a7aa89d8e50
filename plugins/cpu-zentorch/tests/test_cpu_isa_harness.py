"""Every instruction set's kernels against the scalar ones, without torch.

Where this processor cannot run them, an emulator that can does (isa_harness/README.md).

What the harness prints goes to the file that QCORE_ISA_LOG names, if it is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from qcore_cpu import library

HERE = Path(__file__).parent / "isa_harness"
sys.path.insert(0, str(HERE))
import emulate  # noqa: E402

BOCHS = os.environ.get("QCORE_BOCHS")
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

Build = Callable[..., Path]

pytestmark = pytest.mark.slow  # compiles every kernel


def _refusal(compiler: str) -> str | None:
    tools = ("cmake", compiler)
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)} to build the harness" if missing else None


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the harness with some instruction sets, once for each compiler."""
    built: dict[str, Path] = {}

    def harness(compiler: str, isas: tuple[str, ...], *settings: str) -> Path:
        reason = _refusal(compiler)
        if reason is not None:
            pytest.skip(reason)
        if compiler not in built:
            folder = tmp_path_factory.mktemp("isa_harness")
            isa_list = f"-DISAS={';'.join(isas)}"
            configure = ["cmake", "-S", HERE, "-B", folder, f"-DCMAKE_CXX_COMPILER={compiler}"]
            subprocess.run([*configure, isa_list, *settings], check=True)
            threads = str(os.cpu_count() or 1)
            subprocess.run(["cmake", "--build", folder, "--parallel", threads], check=True)
            built[compiler] = folder / "isa_harness"
        return built[compiler]

    return harness


def _native(build: Build) -> Path:
    """For this machine, with what it can run and what Bochs can, if there is one."""
    isas = [name for name in library.supported_isas() if name != "scalar"]
    emulated = [name for name in emulate.MODELS if BOCHS]
    return build("g++", tuple(dict.fromkeys([*isas, *emulated])) or ("none",))


def _log(how: str, text: str) -> None:
    print(f"{how}:\n{text}")
    path = os.environ.get("QCORE_ISA_LOG")
    if path:
        with Path(path).open("a") as file:
            file.write(f"## {how}\n\n{text}\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), "this one"
    )


def test_this_processor(isa: str, build: Build) -> None:
    ended = subprocess.run([_native(build), isa], capture_output=True, text=True)
    _log(f"{isa}, on the processor ({_processor()})", ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_refuses_what_the_processor_lacks(build: Build) -> None:
    ended = subprocess.run([_native(build), "sse9"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "this machine supports" in ended.stdout


@pytest.mark.parametrize("name", tuple(emulate.MODELS))
def test_bochs(name: str, build: Build) -> None:
    if BOCHS is None:
        pytest.skip("QCORE_BOCHS does not name a Bochs that emulates AVX-512 and AMX")
    status, text = emulate.run_bochs(BOCHS, _native(build), [name])
    _log(f"{name}, under Bochs ({emulate.MODELS[name]})", text)
    assert status == 0, text


def test_qemu_arm(build: Build) -> None:
    if shutil.which(ARM_EMULATOR) is None:
        pytest.skip(f"needs {ARM_EMULATOR}")
    harness = build(
        ARM_COMPILER, ("neon",), "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"
    )
    status, text = emulate.run_qemu(ARM_EMULATOR, harness, ["neon"])
    _log(f"neon, under {ARM_EMULATOR} (-cpu max)", text)
    assert status == 0, text
