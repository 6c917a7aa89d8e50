"""Whatever a header says: an error, or tensors that lie in the file and do not overlap."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qcore.errors import CheckpointError
from qcore.models.gguf_file import read_gguf_header
from qcore.models.safetensors_file import DTYPES, read_header, read_tensor

SIZES = st.sampled_from([0, 1, 2, 3, 8, 16, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, -1, -(2**63)])
ODD = st.sampled_from([None, True, 1.5, "1", [], {}, float("nan"), 10**39])
NAMES = st.sampled_from(["a", "b", "a.weight", "", "x" * 257, "." * 40, "\x1b[2J", "é"])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("headers") / "x"


def entries(dtypes, sizes):
    return st.fixed_dictionaries(
        {
            "dtype": dtypes,
            "shape": st.lists(sizes, max_size=4),
            "data_offsets": st.lists(sizes, min_size=2, max_size=2),
        }
    )


BELIEVABLE = entries(st.sampled_from(["U8", "F8_E4M3", "BF16"]), st.integers(0, 8))
LYING = entries(st.sampled_from([*DTYPES, "F3", ""]) | ODD, SIZES | ODD) | ODD


def read_or_refuse(read, file):
    try:
        return read(file)
    except CheckpointError as error:
        message = str(error)
    assert len(message) < 1000
    return None


def lie_within(infos, size):
    end = 0
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        assert end <= info.offset
        assert info.offset + info.nbytes <= size
        end = info.offset + info.nbytes


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(NAMES, BELIEVABLE | LYING, max_size=3),
    st.integers(0, 32),
    st.sampled_from([None, None, None, 0, 1, 2**40, 2**64 - 1]),
)
def test_safetensors(file, header, data, length):
    text = json.dumps(header).encode()
    length = len(text) if length is None else length
    file.write_bytes(length.to_bytes(8, "little") + text + b"\1" * data)
    found = read_or_refuse(read_header, file)
    if found is None:
        return
    lie_within(found.values(), file.stat().st_size)
    for info in found.values():
        assert read_tensor(info).shape == info.shape


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32"]), st.lists(st.integers(0, 3)))),
    st.binary(max_size=20),
)
def test_safetensors_that_are_right_are_read(file, tensors, more):
    header, at = {}, 0
    for i, (dtype, shape) in enumerate(tensors):
        shape, nbytes = shape[:3], DTYPES[dtype].itemsize
        for size in shape:
            nbytes *= size
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * at + more)
    if more:
        with pytest.raises(CheckpointError, match="after the last tensor"):
            read_header(file)
        return
    found = read_header(file)
    assert {name: (info.dtype, list(info.shape)) for name, info in found.items()} == {
        name: (DTYPES[entry["dtype"]], entry["shape"]) for name, entry in header.items()
    }


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"GGUF\3\0\0\0", b"\x10" + b"\0" * 7 + b"{"]))
def test_any_bytes(file, data, start):
    file.write_bytes(start + data)
    for read in (read_header, read_gguf_header):
        read_or_refuse(read, file)


WORDS = st.sampled_from([0, 1, 2, 4, 8, 9, 32, 2**16, 2**24, 2**31, 2**40, 2**63, 2**64 - 1])


def text(value):
    return struct.pack("<Q", len(value)) + value


VALUES = st.one_of(
    st.builds(lambda v: struct.pack("<II", 4, v % 2**32), WORDS),
    st.builds(lambda n, v: struct.pack("<IQ", 8, n) + v, WORDS, st.binary(max_size=9)),
    st.builds(lambda v: struct.pack("<I", 8) + text(v), st.binary(max_size=9)),
    st.builds(lambda k, n: struct.pack("<IIQ", 9, k % 16, n), WORDS, WORDS),
    st.builds(lambda v: struct.pack("<IIQ", 9, 8, 1) + text(v), st.binary(max_size=9)),
)
KEYS = st.sampled_from([b"general.alignment", b"split.count", b"a", b"\xff", b"\x1b", b""])
PAIRS = st.builds(lambda key, value: text(key) + value, KEYS, VALUES)
TENSORS = st.builds(
    lambda name, dims, kind, offset: (
        text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind % 2**32, offset)
    ),
    st.sampled_from([b"a", b"b", b"c" * 300, b"\xff", b"\x1b"]),
    st.lists(WORDS, max_size=5),
    WORDS,
    WORDS,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PAIRS, max_size=3), st.lists(TENSORS, max_size=3), st.data())
def test_gguf(file, pairs, tensors, data):
    counts = data.draw(st.sampled_from([(len(tensors), len(pairs))] * 4 + [(2**40, 0), (1, 2**63)]))
    raw = b"GGUF" + struct.pack("<I2Q", 3, *counts) + b"".join(pairs) + b"".join(tensors)
    raw += b"\0" * (-len(raw) % 32 + data.draw(st.sampled_from([0, 32, 64, 4096])))
    file.write_bytes(raw)
    found = read_or_refuse(read_gguf_header, file)
    if found is not None:
        lie_within(found.tensors.values(), len(raw))


# -- files that are small, and would be costly ---------------------------------------------------


def safetensors_of(header):
    return len(header).to_bytes(8, "little") + header


COSTLY = {
    # 10 MB each, or as much as says what it is about
    "many sizes": safetensors_of(
        b'{"a":{"dtype":"U8","shape":[' + b"9223372036854775807," * 10**5 + b"1]}}"
    ),
    "a number of many digits": safetensors_of(
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 10**7 + b'],"data_offsets":[0,0]}}'
    ),
    "a dtype of many levels": safetensors_of(
        b'{"a":{"dtype":' + b"[" * 900 + b"]" * 900 + b',"shape":[]}}'
    ),
    "a long dtype": safetensors_of(b'{"a":{"dtype":"' + b"x" * 10**7 + b'","shape":[]}}'),
    "a long name": safetensors_of(b'{"' + b"a" * 10**7 + b'":{}}'),
    "long metadata": b"GGUF" + struct.pack("<I2Q", 3, 0, 1) + text(b"k" * 10**7) + b"\0" * 12,
    "many pairs": b"GGUF" + struct.pack("<I2Q", 3, 0, 2**17) + b"\0" * 2**21,
    "many tensors": b"GGUF" + struct.pack("<I2Q", 3, 2**19, 0) + b"\0" * (24 * 2**19),
    "many strings": b"GGUF"
    + struct.pack("<I2Q", 3, 0, 1)
    + text(b"k")
    + struct.pack("<IIQ", 9, 8, 2**23 + 1)
    + b"\0" * (2**26 + 16),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_headers_are_refused_early(tmp_path, name):
    file = tmp_path / "x"
    raw = COSTLY[name]
    file.write_bytes(raw)
    read = read_gguf_header if raw.startswith(b"GGUF") else read_header
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert peak < 12 * len(raw) + 2**20


def test_memory_is_a_small_multiple_of_the_header(tmp_path):
    """What costs most: lists that hold nothing."""
    file = tmp_path / "x"
    file.write_bytes(safetensors_of(b'{"a":{"dtype":[' + b"[]," * 10**5 + b"[]]}}"))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="dtype"):
            read_header(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * file.stat().st_size


def test_devices_and_pipes_are_no_files(tmp_path):
    import os

    from qcore.models.checkpoint import read_json_object

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_json_object(tmp_path / "config.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_json_object(tmp_path / "zero.json")
    (tmp_path / "loop.json").symlink_to(Path("loop.json"))
    with pytest.raises(CheckpointError, match=r"loop\.json"):
        read_json_object(tmp_path / "loop.json")
