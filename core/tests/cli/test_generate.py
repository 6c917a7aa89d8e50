import re
import shutil

import pytest


def test_text_on_stdout_and_the_rest_on_stderr(cli, checkpoint):
    result = cli("generate", checkpoint, "--prompt", "Once", "--max-new-tokens", "5")
    assert result.code == 0
    assert result.out.strip()
    assert "tokens/s" not in result.out
    assert re.search(r"prefill +[\d.]+ tokens/s \(4 tokens", result.err)
    assert re.search(r"decode +[\d.]+ tokens/s \(4 tokens", result.err)
    assert "weights" in result.err
    assert "peak memory" in result.err
    assert re.search(r"14  \w+Kernel +uint4b8 g32", result.err)


def test_greedy_text_is_the_same_twice_and_sampling_follows_its_seed(cli, checkpoint):
    def text(*options):
        return cli("generate", checkpoint, "--prompt", "a", "--max-new-tokens", "8", *options).out

    assert text() == text()
    assert text("--temperature", "2", "--seed", "1") == text("--temperature", "2", "--seed", "1")
    assert text("--temperature", "2", "--seed", "1") != text("--temperature", "2", "--seed", "2")


def test_options(cli, checkpoint):
    import torch

    before = torch.get_num_threads()
    try:
        options = ("--dtype", "float32", "--threads", "1", "--device", "cpu")
        result = cli("generate", checkpoint, "--prompt", "a", "--max-new-tokens", "1", *options)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert result.code == 0
    assert "float32 activations" in result.err
    assert "decode" not in result.err  # one token comes of the prompt


def test_a_float_checkpoint_runs_too(cli, float_checkpoint):
    result = cli("generate", float_checkpoint, "--prompt", "a", "--max-new-tokens", "2")
    assert result.code == 0
    assert "no layer is quantized" in result.err


def test_chat_needs_a_template(cli, checkpoint):
    result = cli("generate", checkpoint, "--prompt", "a", "--chat")
    assert result.code == 1
    assert "no chat template" in result.err


def test_chat(cli, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "chat")
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    result = cli("generate", tmp_path / "chat", "--prompt", "a", "--chat", "--max-new-tokens", "2")
    assert result.code == 0
    assert "(7 tokens" in result.err  # [user]a


@pytest.mark.parametrize("file", ["tokenizer.json"])
def test_a_spoilt_tokenizer(cli, checkpoint, tmp_path, file):
    shutil.copytree(checkpoint, tmp_path / "spoilt")
    (tmp_path / "spoilt" / file).write_text("{")
    result = cli("generate", tmp_path / "spoilt", "--prompt", "a")
    assert result.code == 1
    assert "its tokenizer cannot be loaded" in result.err


def test_no_tokenizer_and_no_prompt(cli, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    assert "holds no tokenizer" in cli("generate", tmp_path / "mute", "--prompt", "a").err
    assert "no tokens" in cli("generate", checkpoint, "--prompt", "").err


def test_kv_cache(cli, checkpoint):
    """128 bytes for each of 8 tokens: two layers, keys and values, two heads of 16; 4 more a row
    with scales of its own.
    """
    args = ("generate", checkpoint, "--prompt", "Once", "--max-new-tokens", "5", "--kv-cache")
    result = cli(*args, "fp8")
    assert result.code == 0
    assert result.out.strip()
    assert re.search(r"KV cache +1.0 KiB in e4m3, scales of 1.0", result.err)
    result = cli(*args, "fp8-dynamic")
    assert re.search(r"KV cache +1.2 KiB in e4m3, a scale for each head and token", result.err)
    assert "KV cache" not in cli(*args, "model").err
    assert cli(*args, "int8").code == 2


def test_compile(cli, checkpoint, monkeypatch):
    """The model is compiled before it generates; what that does is tested with the function."""
    import qcore.models

    compiled = []
    monkeypatch.setattr(qcore.models, "compile_decoding", compiled.append)
    for options, count in (((), 0), (("--compile",), 1)):
        result = cli("generate", checkpoint, "--prompt", "a", "--max-new-tokens", "2", *options)
        assert result.code == 0
        assert len(compiled) == count
