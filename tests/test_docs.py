"""The pages say what the code says."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import qcore
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.target import TARGET_EXAMPLES, Target
from qcore.quantize import quantize_checkpoint
from qcore.registry import Priority, Registry, use_registry
from qcore.selection import Stage
from qcore.selection.questions import declared_refusal, support_refusal
from qcore.settings import VARIABLES, Settings

ROOT = Path(__file__).parents[1]
SELECTING = (ROOT / "docs" / "selecting-kernels.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", [*VARIABLES, "QCORE_DISABLED_PLUGINS"])
def test_every_variable_is_in_the_table(name):
    assert f"| `{name}` |" in SELECTING


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_is_in_the_table_in_order(stage):
    assert f"| {stage} |" in SELECTING
    stages = re.findall(r"^\| ([a-z ]+) \| [a-z]", SELECTING, re.MULTILINE)
    assert stages[: len(Stage) + 1] == ["stage", *map(str, Stage)]


def test_priority_bands():
    bands = dict(re.findall(r"^\| (\d+) \| `(\w+)`", SELECTING, re.MULTILINE))
    assert {int(value): name for value, name in bands.items()} == {int(p): p.name for p in Priority}


def test_targets_in_the_docs_parse():
    section = SELECTING.split("## Targets")[1]
    for text in re.findall(r"`((?:cpu|cuda|rocm|xpu)(?::\w+)?)`", section):
        Target.parse(text)
    assert "cuda:sm_90" in TARGET_EXAMPLES


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_exist(page):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_versions_agree():
    for project in ROOT.glob("*/pyproject.toml"):
        if project.parent.name == "core":
            assert f'version = "{qcore.__version__}"' in project.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def build():
    """docs/build.py as a module."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield importlib.import_module("build")
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_generated_pages_are_up_to_date(build):
    """If this fails: python docs/build.py"""
    stale = [
        path.name
        for path, text in build.pages().items()
        if path.read_text(encoding="utf-8") != text
    ]
    assert stale == []


def test_a_stale_page_is_noticed(build, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(build, "pages", lambda: {page: "new"})
    page.write_text("old")
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    assert build.main() == 1
    assert page.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["build.py"])
    assert build.main() == 0
    assert page.read_text() == "new"
    assert "page.md" in capsys.readouterr().out


TRANSLATED = sorted(ROOT.glob("docs/*.zh-CN.md"))


@pytest.mark.parametrize("chinese", TRANSLATED, ids=lambda p: p.name)
def test_a_translation_has_what_the_page_has(chinese):
    """The same levels of headings, sizes of tables and code; each page leads to the other."""
    english = chinese.with_name(chinese.name.replace(".zh-CN", ""))
    pages = [path.read_text(encoding="utf-8") for path in (english, chinese)]
    for pattern in (r"^#+", r"^\|.*$", r"^```.*?^```$", r"^- "):
        flags = re.MULTILINE | (re.DOTALL if "```" in pattern else 0)
        found = [re.findall(pattern, page, flags) for page in pages]
        if pattern.startswith(r"^\|"):
            found = [[len(re.split(r"(?<!\\)\|", row)) for row in rows] for rows in found]
        assert found[0] == found[1], pattern
    assert all(f"]({path.name})" in page for page in pages for path in (english, chinese))
    assert len(re.findall(r"[\u4e00-\u9fff]", pages[1])) > 500
    # The English page has Chinese in the name of the language only.
    assert len(re.findall(r"[\u4e00-\u9fff]", pages[0])) == len("简体中文")


def test_ops_of_the_pages_are_called_and_have_kernels(build):
    page = importlib.import_module("ops_page")
    assert len({op.name for op in page.OPS}) == 10
    for op in page.OPS:
        assert op.schema.startswith(f"{op.name}("), op.name
        assert "none" not in page._kernels(op, "en")
        assert all(text.en and text.zh for text in (op.role, op.note, *op.contract))


def test_users_of_an_op_are_those_of_its_own_plugin(build):
    """Two plugins have a `wna16_linear`; one is called by `torch.ops.….default`, one by a name."""
    import compiled_ops

    ops = [op for op in compiled_ops.compiled_ops() if op.name == "wna16_linear"]
    users = {op.namespace: {site.caller for site in compiled_ops.users(op)} for op in ops}
    assert users["qcore_cuda"] == {"ExllamaLinearKernel.apply_weights"}
    assert {"CPUWNA16LinearKernel.apply_weights", "CPUGGUFLinearKernel.apply_weights"} <= users[
        "qcore_cpu"
    ]
    assert all(caller.startswith("CPU") for caller in users["qcore_cpu"])


def test_kernels_are_found_whatever_is_installed(build):
    """All folders of plugins are asked, and not the registry."""
    page, reach = importlib.import_module("ops_page"), importlib.import_module("reach")
    reach._able.cache_clear()
    with use_registry(Registry()):
        found = {op.name: reach.by_platform(op.layers) for op in page.OPS}
    for op, platforms in found.items():
        for platform in ("cpu", "cuda"):
            assert not all(map(reach.is_reference, platforms[platform])), (op, platform)
    assert "MarlinLinearKernel" in found["marlin_gemm"]["cuda"]
    assert "CutlassFP8ScaledMMLinearKernel" in found["cutlass_scaled_mm"]["cuda"]
    assert "HipInt8ScaledMMLinearKernel" in found["cutlass_scaled_mm"]["rocm"]


def test_is_supported_says_of_a_described_machine_only_what_is_not_installed(build):
    """Else docs/reach.py, which does not ask it, would say too much."""
    reach, specs = importlib.import_module("reach"), importlib.import_module("light_specs")
    for kernel in specs.declared_kernels():
        for name in reach.TARGETS:
            target = Target.parse(name)
            if declared_refusal(kernel.spec, target, Settings(approximate=True), "auto") is None:
                with weighing(target):
                    _, why, _ = support_refusal(kernel, target) or ("", "", "")
                assert not why or re.search(INSTALLED, why), (kernel.name, name, why)


INSTALLED = "not installed|without its compiled library|no compiled kernels|compiled (for|without)"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "adr" / "README.md"]:
        if page.name != "README.md" or page.parent.name == "adr":
            assert f"({page.relative_to(ROOT / 'docs').as_posix()})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_within_a_page_have_a_heading(page):
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


# -- what the pages show runs ------------------------------------------------------------------

RUN = ("README.md", "core/README.md", "docs/gguf.md", "docs/kv-cache.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def files_of_the_pages(tmp_path_factory):
    """A folder with the files that the pages name."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("pages")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 96, "head_dim": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).requires_grad_(False)
    model.save_pretrained(folder / "source")
    (folder / "path" / "to").mkdir(parents=True)
    quantize_checkpoint(folder / "source", folder / "path/to/checkpoint", scheme="int4-g32")
    writers = str(ROOT / "core" / "tests" / "models")
    sys.path.insert(0, writers)
    try:
        write = importlib.import_module("gguf_writers").write_gguf
    finally:
        sys.path.remove(writers)
    (folder / "folder").mkdir()
    write(folder / "model-Q4_K_M.gguf", model)
    shutil.copy(folder / "model-Q4_K_M.gguf", folder / "folder")
    return folder


@pytest.mark.parametrize("name", RUN)
def test_python_blocks_run(name, files_of_the_pages, monkeypatch, capsys):
    monkeypatch.chdir(files_of_the_pages)
    blocks = [m[2] for m in BLOCK.finditer((ROOT / name).read_text()) if m[1] == "python"]
    assert blocks
    namespace = {"qcore": qcore, "inputs": {"input_ids": torch.tensor([[3, 4, 5]])}}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


COMMANDS = [
    line.partition("#")[0].strip()
    for page in PAGES
    if page.name != "quantizing.md"  # test_quantizing_page.py runs them, with a model
    for _, text in BLOCK.findall(page.read_text(encoding="utf-8"))
    for line in re.findall(r"^(?:\$ )?qcore (.*)$", text, re.MULTILINE)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_qcore_commands_run(command):
    """As they stand; of those that need a model, that there are such options."""
    pytest.importorskip("typer")
    words = shlex.split(command)
    options = [word for word in words if word.startswith("--")] if words[0] == "generate" else []
    if words[0] == "generate":
        words = ["generate", "--help"]
    arguments = [sys.executable, "-m", "qcore", *words]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=wide)
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in options), done.stdout
