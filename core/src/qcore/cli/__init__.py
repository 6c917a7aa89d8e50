"""Floor 9: the command line. One module a command; nothing heavy is imported before it is needed.

The output is for people unless ``--json`` is given: then standard output holds one JSON value and
nothing else. Errors go to standard error, in words; the exit status is 1, or 2 for a command line
that cannot be understood.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> int:
    """Run the command line that the process was started with.

    Returns:
        The exit status, where running it did not exit by itself.
    """
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        named = " and ".join(missing)
        print(
            f"error: the command line needs {named}, not installed: pip install qcore[cli]",
            file=sys.stderr,
        )
        return 1
    from qcore.cli.app import app

    app(prog_name="qcore")
    return 0
