from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from qcore import errors
from qcore.models import safetensors_file
from qcore.models.safetensors_file import DTYPES, read_header, read_tensor, same_bytes
from safetensors.torch import load_file, save_file

UNEVEN = (3, 5)


def write(path):
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(0, 2, (*UNEVEN, dtype.itemsize), dtype=torch.uint8, generator=g)
        tensors[name] = raw.view(dtype).reshape(UNEVEN)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor


@pytest.mark.parametrize("chunk", [7, 16 * 2**20])
def test_reads_what_safetensors_writes(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(safetensors_file, "_CHUNK", chunk)
    file = tmp_path / "x.safetensors"
    write(file)
    found = read_header(file)
    expected = load_file(file)
    assert found.keys() == expected.keys()
    for name, info in found.items():
        got = read_tensor(info)
        assert (got.dtype, got.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(bits(got), bits(expected[name])), name


def test_memory_is_the_tensors_own(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(4)}, file)
    info = read_header(file)["a"]
    one = read_tensor(info)
    one.zero_()
    assert read_tensor(info).tolist() == [0, 1, 2, 3]
    file.unlink()
    assert one.tolist() == [0, 0, 0, 0]
    with pytest.raises(errors.CheckpointError, match=r"x\.safetensors: cannot be read"):
        read_tensor(info)


def test_file_that_shrinks_after_its_header_was_read(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(1000)}, file)
    info = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(errors.CheckpointError, match="became shorter"):
        read_tensor(info)


def test_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_CHUNK", 16)
    values = torch.arange(100)
    other = values.clone()
    other[-1] = 0
    file = tmp_path / "x.safetensors"
    save_file(
        {"a": values, "b": values.clone(), "c": other, "d": values.clone().reshape(10, 10)}, file
    )
    found = read_header(file)
    assert same_bytes(found["a"], found["b"])
    assert not same_bytes(found["a"], found["c"])
    assert not same_bytes(found["a"], found["d"])
    assert not same_bytes(found["a"], replace(found["a"], dtype=torch.float64))
    assert str(found["a"]) == "a int64 [100]"
