"""Read JSON that a stranger wrote, and show what is in it.

The interpreter's parser is fast and safe, but takes what no config has: numbers of a million
digits (which cost quadratic time to read or to print), thousands of levels (which everything that
walks the values later trips over), halves of surrogate pairs (which cannot be printed), and control
characters (which a terminal obeys). They are refused here, once.
"""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

__all__ = ["check_text", "parse_json", "shown"]

_MAX_DIGITS = 40
_MAX_DEPTH = 64
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def parse_json(raw: bytes, *, unique: bool = False, check: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        raw: the text, UTF-8.
        unique: refuse an object that has a key twice.
        check: look at the depth and at every string; False where the caller does.

    Raises:
        ValueError: it is no JSON, or has something that no config has; the message is short.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_int=_integer,
            parse_float=_float,
            object_pairs_hook=_unique if unique else None,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if check:
        _check(value)
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > 2 * _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return float(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _check(value: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                check_text(item)
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise ValueError("nested too deeply")


def check_text(text: str) -> None:
    """Raise `ValueError` if a string cannot be printed, or would do more than that."""
    found = _UNFIT.search(text)
    if found is not None:
        raise ValueError(f"a string with the character {found[0]!r}")


class _Short(reprlib.Repr):
    """Bounded in length, in depth and in time, whatever the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = 8
        self.maxstring = self.maxlong = self.maxother = 80


_short = _Short()


def shown(value: object) -> str:
    """A value of a checkpoint, short enough for a message."""
    text = _short.repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
