"""The loader: its refusals, and its calls to a libamdhip64 of our own, which notes what it gets."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cpu_machine import compiler
from qcore.errors import ConfigError, MissingDependencyError
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore_rocm import driver, launching, library, ops

FAKE = r"""
#include <string.h>
extern "C" {
int count = 1, fails = 0;
unsigned seen[7];
void* stream_seen;
char name_seen[64], code_seen[8];
unsigned char args_seen[96];
int hipGetDeviceCount(int* n) { *n = count; return count ? 0 : 100; }
int hipModuleLoadData(void** module, const void* code) {
  memcpy(code_seen, code, 4);
  *module = (void*)0x11;
  return fails;
}
int hipModuleGetFunction(void** function, void* module, const char* name) {
  if (module != (void*)0x11 || strlen(name) > 60) return 1;
  strcpy(name_seen, name);
  *function = (void*)0x123456789abc;
  return strcmp(name, "absent") ? 0 : 500;
}
int hipModuleLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned shared, void* stream, void** params, void** extra) {
  const unsigned all[7] = {gx, gy, gz, bx, by, bz, shared};
  memcpy(seen, all, sizeof seen);
  stream_seen = stream;
  if (f != (void*)0x123456789abc || extra) return 1;
  memcpy(args_seen, params[0], sizeof args_seen);
  return fails;
}
}
"""


@pytest.fixture(scope="module")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = compiler()
    if found is None:
        pytest.skip("no C++ compiler to build a stand-in of libamdhip64 with")
    folder = tmp_path_factory.mktemp("hip")
    source, built = folder / "fake.cpp", folder / "libfakehip.so"
    source.write_text(FAKE)
    subprocess.run([found, "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    return str(built)


@pytest.fixture
def fake(fake_library: str) -> Iterator[tuple[driver.Driver, ctypes.CDLL]]:
    opened = driver.Driver(replace(driver.HIP, libraries=(fake_library,)))
    raw = ctypes.CDLL(fake_library)
    yield opened, raw
    ctypes.c_int.in_dll(raw, "fails").value = 0
    ctypes.c_int.in_dll(raw, "count").value = 1


def test_calls(fake: tuple[driver.Driver, ctypes.CDLL]) -> None:
    opened, raw = fake
    assert opened.devices() == 1
    module = opened.load(b"\x7fELF...")
    assert (ctypes.c_char * 4).in_dll(raw, "code_seen").raw == b"\x7fELF"
    function = opened.function(module, "scaled_mm_int8_16")
    assert function == 0x123456789ABC
    args = launching.ScaledMM(*range(1, 17))
    opened.launch(function, (5, 6), 256, 0xABCDEF012345, args)
    assert list((ctypes.c_uint * 7).in_dll(raw, "seen")) == [5, 6, 1, 256, 1, 1, 0]
    assert ctypes.c_void_p.in_dll(raw, "stream_seen").value == 0xABCDEF012345
    seen = bytes((ctypes.c_ubyte * 96).in_dll(raw, "args_seen"))
    assert seen[: ctypes.sizeof(args)] == bytes(args)


def test_failures(fake: tuple[driver.Driver, ctypes.CDLL]) -> None:
    opened, raw = fake
    with pytest.raises(driver.DriverError, match=r"hipModuleGetFunction\(absent\) returned 500"):
        opened.function(0x11, "absent")
    ctypes.c_int.in_dll(raw, "fails").value = 209
    with pytest.raises(driver.DriverError, match=r"returned 209 \(no code for this device\)"):
        opened.load(b"\x7fELF")
    with pytest.raises(driver.DriverError, match=r"hipModuleLaunchKernel returned 209"):
        opened.launch(0x123456789ABC, (1, 1), 64, 0, launching.ScaledMM())
    ctypes.c_int.in_dll(raw, "count").value = 0
    with pytest.raises(driver.DriverError, match=r"hipGetDeviceCount returned 100 \(no device\)"):
        opened.devices()


def test_no_library() -> None:
    with pytest.raises(MissingDependencyError, match=r"libqcore_none\.so cannot be loaded"):
        driver.Driver(replace(driver.HIP, libraries=("libqcore_none.so",)))


def test_a_library_without_the_functions() -> None:
    with pytest.raises(MissingDependencyError, match="hip"):
        driver.Driver(replace(driver.HIP, libraries=("libm.so.6",)))


@pytest.fixture
def asked_again() -> Iterator[None]:
    library.unusable_here.cache_clear()
    library.compiled_archs.cache_clear()
    driver.hip.cache_clear()
    yield
    library.unusable_here.cache_clear()
    library.compiled_archs.cache_clear()
    driver.hip.cache_clear()


def here(arch: str) -> Target:
    return replace(Target.parse(f"rocm:{arch}"), is_current=True)


@pytest.mark.skipif(torch.version.hip is not None, reason="this torch is built with ROCm")
def test_refusals(
    fake_library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked_again: None
) -> None:
    """In words, one after the other, as more and more of what is needed is there."""
    monkeypatch.setattr(library, "_FOLDER", tmp_path)

    def ask(target: Target) -> str:
        with weighing(target):
            return str(library.refusal())

    assert "no compiled kernels: it is run from source" in ask(Target.parse("rocm:gfx942"))
    (tmp_path / "built.txt").write_text("it was built where no clang was found\n")
    assert "it was built where no clang was found" in ask(Target.parse("rocm:gfx942"))
    (tmp_path / "gfx942.co").write_bytes(b"\x7fELF")
    library.compiled_archs.cache_clear()
    assert ask(Target.parse("rocm:gfx942")) == "None"
    assert ask(Target.parse("rocm:gfx1100")) == "compiled for gfx942; this device is gfx1100"
    assert "is built without ROCm" in ask(here("gfx942"))

    monkeypatch.setattr(torch.version, "hip", "7.1")
    library.unusable_here.cache_clear()
    monkeypatch.setattr(driver, "HIP", replace(driver.HIP, libraries=("libqcore_none.so",)))
    assert "libqcore_none.so cannot be loaded" in ask(here("gfx942"))

    library.unusable_here.cache_clear()
    driver.hip.cache_clear()
    monkeypatch.setattr(driver, "HIP", replace(driver.HIP, libraries=(fake_library,)))
    count = ctypes.c_int.in_dll(ctypes.CDLL(fake_library), "count")
    count.value = 0
    assert "hipGetDeviceCount returned 100 (no device)" in ask(here("gfx942"))
    count.value = 1
    library.unusable_here.cache_clear()
    assert "torch finds no GPU" in ask(here("gfx942"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    library.unusable_here.cache_clear()
    assert ask(here("gfx942")) == "None"
    assert ask(here("gfx90a")) == "compiled for gfx942; this device is gfx90a"


def test_launching_as_on_a_gpu(
    fake_library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked_again: None
) -> None:
    """From the launcher down, with torch's GPU played: load once, find once, the current stream."""
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    (tmp_path / "gfx1201.co").write_bytes(b"\x7fELF")
    monkeypatch.setattr(driver, "HIP", replace(driver.HIP, libraries=(fake_library,)))

    class Played:
        gcnArchName = "gfx1201:sramecc+"  # noqa: N815
        cuda_stream = 77

        def __init__(self, *args: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *args: object) -> None: ...

    for name in ("device", "current_stream", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, Played)
    launcher = launching.HipLauncher()
    device = torch.device("cuda", 0)
    for _ in range(2):
        launcher.launch("w4a16_f16_few", launching.W4A16(), (3, 1), device)
    raw = ctypes.CDLL(fake_library)
    assert list((ctypes.c_uint * 7).in_dll(raw, "seen")) == [3, 1, 1, 128, 1, 1, 0]
    assert ctypes.c_void_p.in_dll(raw, "stream_seen").value == 77
    assert list(launcher._functions) == [(0, "w4a16_f16_few")]


def test_a_cpu_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensors are on cpu; an AMD GPU is needed"):
        ops.int8_linear(
            torch.ones(1, 16), torch.ones(1, 16, dtype=torch.int8), torch.ones(1), *[None] * 4,
            torch.float32,
        )  # fmt: skip
