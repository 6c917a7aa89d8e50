import json


def test_quantize(cli, float_checkpoint, tmp_path):
    dest = tmp_path / "out"
    result = cli("quantize", float_checkpoint, dest, "--scheme", "int4-g32", "--lm-head", "int8")
    assert result.code == 0
    assert "14 int4-g32" in result.out
    assert "1 int8" in result.out
    assert "worst" in result.out
    assert (dest / "config.json").is_file()
    again = cli("quantize", float_checkpoint, dest)
    assert again.code == 1
    assert "--overwrite" in again.err
    assert cli("quantize", float_checkpoint, dest, "--scheme", "int8", "--overwrite").code == 0


def test_json_and_ignored_layers(cli, float_checkpoint, tmp_path):
    options = ("--scheme", "int4-g32", "--ignore", "re:.*down_proj", "--no-search", "--json")
    found = json.loads(cli("quantize", float_checkpoint, tmp_path / "out", *options).out)
    assert len(found["layers"]) == 12
    assert found["bytes_after"] < found["bytes_before"]
    assert {"model.layers.0.mlp.down_proj", "lm_head"} <= {kept["name"] for kept in found["kept"]}


def test_a_scheme_that_cannot_be_read(cli, float_checkpoint, tmp_path):
    result = cli("quantize", float_checkpoint, tmp_path / "out", "--scheme", "q4_k_m")
    assert result.code == 1
    assert "for instance: int4-g128" in result.err
