import json


def test_a_checkpoint(cli, checkpoint):
    result = cli("inspect", checkpoint)
    assert result.code == 0
    assert "compressed-tensors" in result.out
    assert "down_proj" in result.out
    per_layer = cli("inspect", checkpoint, "--per-layer").out
    assert "model.layers.1.mlp.down_proj" in per_layer


def test_json_for_another_machine(cli, checkpoint):
    found = json.loads(cli("inspect", checkpoint, "--target", "cuda:sm_90", "--json").out)
    assert found["target"] == "cuda:sm_90"
    assert len(found["layers"]) == 14


def test_a_folder_without_a_checkpoint(cli, tmp_path):
    result = cli("inspect", tmp_path)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert str(tmp_path) in result.err
