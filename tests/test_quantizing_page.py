"""The commands and programs of docs/quantizing.md run as they are written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qcore.quantize import SCHEME_NAMES, QuantizeScheme

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("typer")

PAGE = (Path(__file__).parents[1] / "docs" / "quantizing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- tool: (\w+) -->\n)?```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
OWN = [(kind, text) for _, tool, kind, text in BLOCKS if not tool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``model`` and ``text.txt``."""
    folder = tmp_path_factory.mktemp("page")
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=260,
        max_position_embeddings=512,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    names = ["<unk>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={name: index for index, name in enumerate(names)}, merges=[], unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return folder


def test_everything_on_the_page_runs(folder, monkeypatch):
    """In order, as the later ones use what the earlier ones made."""
    assert len(OWN) >= 6
    monkeypatch.chdir(folder)
    for kind, text in OWN:
        if "model-gptq" in text:  # another tool makes it
            continue
        if kind == "python":
            exec(compile(text, "docs/quantizing.md", "exec"), {})
            continue
        for line in text.splitlines():
            words = shlex.split(line)
            assert words[0] == "qcore"
            done = subprocess.run(
                [sys.executable, "-m", "qcore", *words[1:]], capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_programs_of_other_tools_are_programs():
    tools = {tool: text for _, tool, kind, text in BLOCKS if tool and kind == "python"}
    assert set(tools) == {"llmcompressor", "gptqmodel"}
    for text in tools.values():
        compile(text, "docs/quantizing.md", "exec")


@pytest.mark.parametrize("scheme", [n for n in SCHEME_NAMES if not re.search(r"g64", n)])
def test_every_scheme_is_in_the_table(scheme):
    assert f"`{scheme}`" in PAGE


def test_every_scheme_of_the_table_exists():
    rows = PAGE.split("## Schemes")[1].split("\n\n")[1].splitlines()[2:]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(names) > 20
    for name in names:
        assert str(QuantizeScheme.parse(name)) == name
