"""What every command prints with: aligned tables, JSON, text.

Written to a terminal, a table is folded to its width and headings are bold. Written elsewhere, it
has one line a row, nothing is cut and there are no control sequences.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["heading", "line_width", "print_json", "print_lines", "print_table"]

_UNLIMITED = 10_000


def _console(file: TextIO | None) -> Console:
    stream = file if file is not None else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def line_width(file: TextIO | None = None) -> int:
    """How many characters a line may have: the terminal's width, or a very large number."""
    return _console(file).width


def print_json(value: Any) -> None:
    """Print one JSON value."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_lines(text: str, *, indent: int = 0, file: TextIO | None = None) -> None:
    """Print text as it is, indented; a terminal folds it if it must."""
    for line in text.splitlines() or [""]:
        print(f"{' ' * indent}{line}".rstrip(), file=file)


def heading(text: str, *, first: bool = False, file: TextIO | None = None) -> None:
    """Print a heading, after an empty line unless it is the ``first``."""
    _print(Text(text if first else f"\n{text}", style="bold"), file)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    widths: Sequence[int] = (),
    indent: int = 2,
    header: bool = True,
    file: TextIO | None = None,
) -> None:
    """Print a table.

    Args:
        columns: their titles.
        rows: a cell for each column; what is not text is made so.
        right: columns that are aligned to the right.
        whole: columns that are never folded.
        widths: the least width of each column, to align one table with another.
        indent: spaces before each row.
        header: whether the titles are printed.
        file: where to; standard output by default.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=header)
    for title, width in zip_longest(columns, widths[: len(columns)]):
        table.add_column(
            Text(title),
            justify="right" if title in right else "left",
            no_wrap=title in whole,
            min_width=width,
            overflow="fold",
            header_style="dim",
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if indent:
        outer = Table.grid(padding=0)
        outer.add_row(" " * indent, table)
        _print(outer, file)
    else:
        _print(table, file)


def _print(renderable: Any, file: TextIO | None) -> None:
    console = _console(file)
    with console.capture() as captured:
        console.print(renderable)
    stream = file if file is not None else sys.stdout
    for line in captured.get().splitlines():
        stream.write(line.rstrip() + "\n")
