"""csrc/meeting_flags.cu on the processor, with a runtime that answers what a test says."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import pytest
from host_compiler import COMPILER, compiled

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the flags")

RUNTIME = """
#pragma once
#define __device__
using cudaStream_t = struct Stream*;
enum cudaError_t { cudaSuccess, cudaErrorUnknown };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline const cudaStream_t cudaStreamPerThread = reinterpret_cast<cudaStream_t>(2);
inline unsigned long long capturing;
inline bool fails;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <typename T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                            unsigned long long* id) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  *id = capturing ? capturing : 77;  // without a capture it means nothing
  return fails ? cudaErrorUnknown : cudaSuccess;
}
"""
SOURCE = """
#include "meeting_flags.cu"
extern "C" void* flags(int device, long long stream, long long capture, int fail) {
  capturing = capture, fails = fail;
  return qcore_cuda::meeting_flags(device, reinterpret_cast<cudaStream_t>(stream));
}
extern "C" int count() { return qcore_cuda::kMeetingFlags; }
"""


@pytest.fixture
def library(tmp_path: Path) -> ctypes.CDLL:
    (tmp_path / "cuda_runtime.h").write_text(RUNTIME)
    found = compiled(SOURCE, f"-I{tmp_path}")
    found.flags.restype = ctypes.c_void_p
    found.flags.argtypes = (ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_int)
    return found


def test_each_stream_and_each_graph_has_its_own(library: ctypes.CDLL) -> None:
    users = [(0, 0, 0), (0, 64, 0), (0, 64, 5), (0, 64, 6), (0, 0, 5), (0, 128, 0)]
    found = {user: library.flags(*user, 0) for user in users}
    assert None not in found.values()
    places = sorted(found.values())
    assert all(b - a >= library.count() for a, b in itertools.pairwise(places))
    for user in [*users, *reversed(users)]:
        assert library.flags(*user, 0) == found[user]


def test_none_where_it_cannot_be_told_or_none_are_left(library: ctypes.CDLL) -> None:
    assert library.flags(0, 2, 0, 0) is None  # the default stream of each thread
    assert library.flags(0, 64, 0, 1) is None
    assert library.flags(64, 64, 0, 0) is None
    first = library.flags(0, 64, 0, 0)
    rest = [library.flags(0, 64, graph, 0) for graph in range(1, 4097)]
    assert len({first, *rest[:-1]}) == 4096
    assert None not in (first, *rest[:-1])
    assert rest[-1] is None
    assert library.flags(0, 64, 0, 0) == first
