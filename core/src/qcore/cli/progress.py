"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    first: str, *, in_bytes: bool = False
) -> Iterator[Callable[[int, int, str], None] | None]:
    """Show a bar until the context ends; it then vanishes.

    Args:
        first: what is done before the first step.
        in_bytes: the steps are bytes.

    Yields:
        A function to call with the steps done, all steps and a name; None without a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    steps = DownloadColumn() if in_bytes else MofNCompleteColumn()
    name = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(), steps, TimeRemainingColumn(), name)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield advance
