"""What the tests of the command line share: a runner, installed plugins, a checkpoint to run."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

PLUGIN = """
from qcore.plugin import API_VERSION, DoctorLine, KernelSpec, PluginInfo, hookimpl

@hookimpl
def qcore_plugin():
    return PluginInfo("{name}", API_VERSION, {{"{name}": "made for a test"}})
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No variable of the outside has a say, and no test's registry outlives it."""
    import os

    from qcore.registry import reset_registry
    from qcore.selection import algorithm

    for name in list(os.environ):
        if name.startswith(("QCORE_", "VLLM_")) and name != "QCORE_DISABLED_PLUGINS":
            monkeypatch.delenv(name)
    reset_registry()
    algorithm._cache.clear()
    yield
    reset_registry()
    algorithm._cache.clear()


@pytest.fixture
def cli():
    """``cli("kernels", "--json")`` runs a command in this process."""
    from qcore.cli.app import app
    from typer.testing import CliRunner

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run


@pytest.fixture
def process():
    """``process("kernels", "--json")`` runs a command in a process of its own."""

    def run(*arguments, code=None, **environment):
        import os

        command = ["-c", code] if code is not None else ["-m", "qcore"]
        done = subprocess.run(
            [sys.executable, *command, *(str(a) for a in arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            check=False,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(name, source)`` installs a distribution that brings a plugin; gives its path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules = []

    def make(name, source, *, introduced=True):
        package = f"made_{name}"
        modules.append(package)
        (site / package).mkdir()
        (site / package / "__init__.py").write_text("")
        head = PLUGIN.format(name=name) if introduced else ""
        (site / package / "plugin.py").write_text(head + textwrap.dedent(source))
        info = site / f"dist_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[qcore.plugins]\n{name} = {package}.plugin\n")
        return site

    yield make
    for name in list(sys.modules):
        if name.partition(".")[0] in modules:
            del sys.modules[name]


@pytest.fixture(scope="session")
def float_checkpoint(tmp_path_factory):
    """A tiny Llama with a tokenizer of bytes."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("model") / "float"
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=260,
        max_position_embeddings=128,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    names = ["<unk>", "<s>", "</s>", *sorted(alphabet)]
    vocabulary = {name: index for index, name in enumerate(names)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(float_checkpoint):
    """The same, quantized."""
    from qcore.quantize import quantize_checkpoint

    dest = float_checkpoint.parent / "int4"
    quantize_checkpoint(float_checkpoint, dest, scheme="int4-g32")
    return dest
