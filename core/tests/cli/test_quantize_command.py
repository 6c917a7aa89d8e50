import json

import pytest


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


@pytest.mark.parametrize("scheme", ["fp8", "fp8-block", "mxfp8", "mxfp4", "nvfp4-weight-only"])
def test_float_schemes(cli, float_checkpoint, tmp_path, scheme):
    dest = tmp_path / "out"
    result = cli("quantize", float_checkpoint, dest, "--scheme", scheme, "--target", "re:.*mlp")
    assert result.code == 0
    assert f"6 {scheme}" in result.out
    assert "ReferenceMP" not in cli("inspect", dest).out


@pytest.mark.parametrize("scheme", ["int8-static", "int8-static-asym", "fp8-static", "nvfp4"])
def test_calibration(cli, float_checkpoint, tmp_path, scheme):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    options = ["--observer", "percentile", "--percentile", "99.5", "--sequence-length", "64"]
    result = cli(
        "quantize",
        float_checkpoint,
        tmp_path / "out",
        "--scheme",
        scheme,
        "--calibrate",
        text,
        *options,
        "--sequences",
        "3",
    )
    assert result.code == 0, result.err
    assert f"14 {scheme}" in result.out
    assert cli("generate", tmp_path / "out", "--prompt", "ab", "--max-new-tokens", "2").code == 0
    without = cli("quantize", float_checkpoint, tmp_path / "other", "--scheme", scheme)
    assert without.code == 1
    assert "--calibrate TEXTFILE" in without.err


def test_a_text_that_is_none(cli, float_checkpoint, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    options = ("--scheme", "int8-static", "--calibrate", tmp_path / "bytes")
    result = cli("quantize", float_checkpoint, tmp_path / "out", *options)
    assert result.code == 1
    assert "no text in UTF-8" in result.err
    lost = cli("quantize", float_checkpoint, tmp_path / "out", *options[:-1], tmp_path / "lost")
    assert "lost: No such file" in lost.err


def test_commands_that_round_at_load(cli, float_checkpoint, checkpoint):
    shown = cli("inspect", float_checkpoint, "--quantize", "int4-g32")
    assert "online (float, rounded to int4-g32 at load)" in shown.out
    explained = cli("explain", float_checkpoint, "--quantize", "mxfp4")
    assert explained.code == 0
    assert "mxfp4" in explained.out
    ran = cli(
        "generate",
        float_checkpoint,
        "--prompt",
        "ab",
        "--max-new-tokens",
        "2",
        "--quantize",
        "int8",
    )
    assert ran.code == 0
    assert "int8" in ran.err
    again = cli("generate", checkpoint, "--prompt", "ab", "--quantize", "int8")
    assert again.code == 1
    assert "quantized already" in again.err
    lost = cli("explain", "--type", "mp", "--quantize", "int8")
    assert lost.code == 2
