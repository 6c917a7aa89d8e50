"""The pages say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest
import qcore
from qcore.facts.target import TARGET_EXAMPLES, Target
from qcore.registry import Priority, get_registry
from qcore.selection import Stage
from qcore.settings import VARIABLES

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


def test_the_page_of_kernels_is_up_to_date():
    """If this fails: python docs/kernels_page.py"""
    spec = importlib.util.spec_from_file_location("kernels_page", ROOT / "docs/kernels_page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text(encoding="utf-8")
    here = {kernel.distribution for kernel in get_registry().kernels()}
    absent = [wheel for wheel in page.OURS if f"| {wheel} |" in text and wheel not in here]
    if absent:
        pytest.skip(f"the page has kernels of {', '.join(absent)}, not installed here")
    assert text == page.render()
