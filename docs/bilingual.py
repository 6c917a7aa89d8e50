"""What the generated pages share: texts in two languages, tables, links to the sources."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LANGUAGES = ("en", "zh")


class Text(NamedTuple):
    """One statement, in English and in Chinese."""

    en: str
    zh: str


def both(same: str) -> Text:
    """What is written alike in both languages."""
    return Text(same, same)


def say(language: str) -> Callable[[Text], str]:
    """What takes the statements in this language."""
    return lambda text: text.en if language == "en" else text.zh


def page(stem: str, language: str) -> Path:
    """``docs/ops.md``; ``docs/ops.zh-CN.md``."""
    return DOCS / (f"{stem}.md" if language == "en" else f"{stem}.zh-CN.md")


def switch(stem: str) -> str:
    """The line that leads from one language to the other."""
    return f"[English]({page(stem, 'en').name}) | [简体中文]({page(stem, 'zh').name})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]


def cell(text: str) -> str:
    """Text that ends no cell and no row."""
    return " ".join(text.replace("|", "\\|").split())


def source_of(module: str) -> Path:
    """The file of a module of this repository, whatever is installed.

    Raises:
        FileNotFoundError: no distribution of the repository has it.
    """
    tail = Path(*module.split("."))
    for source in sorted([ROOT / "core" / "src", *ROOT.glob("plugins/*/src")]):
        for path in (source / tail.with_suffix(".py"), source / tail / "__init__.py"):
            if path.is_file():
                return path
    raise FileNotFoundError(f"no distribution here has the module {module}")


def link(name: str, path: Path) -> str:
    """A link to a file of the repository, from a page in docs."""
    return f"[`{name}`](../{path.relative_to(ROOT).as_posix()})"


def object_link(entry: str) -> str:
    """A link to the file of ``module:Class.method``, which is imported to see that it is there.

    Raises:
        AttributeError: the module has no such object.
    """
    module, _, name = entry.partition(":")
    found = importlib.import_module(module)
    first, _, rest = name.partition(".")
    found = getattr(found, first)
    home = getattr(found, "__module__", module)
    reduce(getattr, filter(None, rest.split(".")), found)
    return link(name, source_of(home))
