"""The pages for kernel authors: every Python block runs, and prints what the page says.

A block that starts with a comment like ``# package/module.py`` is a file; the others are one
program, run from top to bottom with those files installed. A ``text`` block after a Python block is
what it prints.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from qcore.registry import discover, discovery

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "docs" / name for name in ("writing-a-plugin.md", "porting-from-vllm.md")]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/.]+\.(?:py|toml))\n")

pytestmark = pytest.mark.skipif(
    not all(page.exists() for page in PAGES), reason="the pages are not part of this distribution"
)


def blocks_of(page):
    return [(m[1], m[2]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def write_files(blocks, folder):
    for _, text in blocks:
        if named := FILE.match(text):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def install(folder):
    """What installing the page's pyproject.toml leaves behind, as far as discovery looks at it."""
    project = folder / "pyproject.toml"
    if not project.exists():
        return
    text = project.read_text(encoding="utf-8")
    group, points = re.search(
        r'\[project\.entry-points\."([\w.]+)"\]\n(.*)', text, re.DOTALL
    ).groups()
    info = folder / "my_kernels-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-kernels\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}".replace('"', ""))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_the_page_run(page, tmp_path, monkeypatch):
    blocks = blocks_of(page)
    assert sum(language == "python" for language, _ in blocks) >= 4
    write_files(blocks, tmp_path)
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith(("QCORE_", "VLLM_"))]:
        monkeypatch.delenv(name)
    # Other plugins that happen to be installed are not on the page.
    found = [p for p in entry_points(group="qcore.plugins") if p.name in ("reference", "mine")]
    monkeypatch.setattr(discovery, "_registry", discover(found=found))
    modules = set(sys.modules)
    namespace = {"__name__": "page"}
    try:
        for (language, text), following in zip(blocks, [*blocks[1:], ("", "")], strict=True):
            if language != "python" or FILE.match(text):
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), namespace)
            if following[0] == "text":
                assert printed.getvalue() == following[1]
            else:
                assert printed.getvalue() == ""
    finally:
        for name in set(sys.modules) - modules:
            if name.split(".")[0] in ("my_kernels", "ported"):
                del sys.modules[name]


def test_the_test_file_of_the_page_passes(tmp_path):
    write_files(blocks_of(PAGES[0]), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
