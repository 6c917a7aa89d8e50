import json

import pytest
import torch
from qcore.quantize.writer import PlannedTensor, ShardWriter
from safetensors import safe_open

GROUPS = [
    [
        PlannedTensor("a.packed", torch.int32, (3, 5)),
        PlannedTensor("a.scale", torch.bfloat16, (3, 1)),
    ],
    [PlannedTensor("b", torch.float32, (7,))],
    [PlannedTensor("c.flag", torch.bool, (3,)), PlannedTensor("c.shape", torch.int64, (2,))],
    [PlannedTensor("d", torch.float16, ())],
]
TENSORS = {
    "d": torch.tensor(1.5, dtype=torch.float16),
    "b": torch.arange(7.0),
    "a.packed": torch.arange(15, dtype=torch.int32).reshape(5, 3).t(),
    "a.scale": torch.randn(3, 1).bfloat16(),
    "c.flag": torch.tensor([True, False, True]),
    "c.shape": torch.tensor([3, 5]),
}


def write(folder, max_bytes):
    with ShardWriter(folder, GROUPS, max_bytes, {"format": "pt"}) as writer:
        for name, tensor in TENSORS.items():
            writer.put(name, tensor)
        writer.finish()
    return writer


@pytest.mark.parametrize("max_bytes", [1 << 20, 70, 1])
def test_safetensors_reads_what_is_written_in_any_order(tmp_path, max_bytes):
    write(tmp_path, max_bytes)
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"
            found |= {name: (path.name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name][1], tensor), name
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (max_bytes < 100)
    if index.exists():
        read = json.loads(index.read_text())
        assert read["weight_map"] == {name: file for name, (file, _) in found.items()}
        assert read["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())


def test_tensors_of_a_group_stay_together(tmp_path):
    writer = write(tmp_path, 1)
    assert writer.shards == len(GROUPS)
    assert (tmp_path / "model-00001-of-00004.safetensors").exists()


def test_what_was_not_planned_or_not_written_is_an_error(tmp_path):
    with ShardWriter(tmp_path, GROUPS, 1 << 20, {}) as writer:
        with pytest.raises(ValueError, match="b: "):
            writer.put("b", torch.zeros(8))
        with pytest.raises(KeyError):
            writer.put("z", torch.zeros(8))
        with pytest.raises(ValueError, match=r"never written: a\.packed"):
            writer.finish()
