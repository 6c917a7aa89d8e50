"""The commands that take a checkpoint take a GGUF file as well."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("gguf")
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import checkpoint_writers as w
import gguf_writers as g


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    letters = [chr(code) for code in range(ord("!"), ord("!") + 92)]
    tokens = ["<unk>", "<s>", *letters, "ab", "abc"]
    model = w.tiny_model("Qwen2ForCausalLM", tie_word_embeddings=True)
    return g.write_gguf(tmp_path_factory.mktemp("m") / "m.gguf", model, tokens=tokens)


def test_inspect(cli, file):
    result = cli("inspect", file)
    assert result.code == 0
    assert "Qwen2ForCausalLM" in result.out
    assert "gguf: Q8_0" in result.out
    assert "ReferenceGGUFLinearKernel" in result.out
    data = json.loads(cli("inspect", file, "--json").out)
    assert data["method"] == "gguf"
    assert len(data["layers"]) == 15


def test_explain_a_file(cli, file):
    result = cli("explain", file, "--target", "cuda:sm_90")
    assert result.code == 0
    assert "ReferenceGGUFLinearKernel" in result.out


def test_explain_a_layer(cli):
    result = cli(
        "explain", "--type", "gguf", "--shape", "512x64", "--weight-type", "Q6_K", "--json"
    )
    assert json.loads(result.out)["config"]["qtype"] == "Q6_K"
    result = cli("explain", "--type", "gguf", "--weight-type", "Q6_L")
    assert result.code == 2
    assert "Q6_K" in result.err


def test_generate(cli, file):
    result = cli("generate", file, "--prompt", "abc", "--max-new-tokens", "4")
    assert result.code == 0
    assert "gguf Q8_0" in result.err


def test_generate_without_the_package(cli, file, monkeypatch):
    from qcore.cli import generate

    monkeypatch.setattr(generate, "find_spec", lambda name: None)
    result = cli("generate", file, "--prompt", "abc")
    assert result.code != 0
    assert "pip install 'qcore[gguf]'" in result.err
