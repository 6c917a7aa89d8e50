"""Parse a regular expression of a checkpoint into a tree; what needs backtracking is refused.

The syntax is that of `re`, which has checked the text before it comes here. What one character
matches (``[a-z]``, ``\\d``, ``.``) is left to `re` as well, so that only structure is parsed:
sequences, alternatives, groups, repetitions, anchors and lookarounds. Backreferences, conditions,
atomic groups and possessive repetitions are refused, as are flags but for a leading ``(?i)``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

__all__ = [
    "ANYTHING",
    "MAX_LENGTH",
    "Alternatives",
    "Character",
    "Look",
    "Node",
    "Place",
    "Repeat",
    "Sequence",
    "parse_glob",
    "parse_pattern",
    "width",
]

MAX_LENGTH = 2048
_MAX_DEPTH = 24

Node = Union["Character", "Sequence", "Alternatives", "Repeat", "Place", "Look"]


@dataclass(frozen=True, eq=False)
class Character:
    """One character, where ``fits`` says so."""

    fits: Callable[[str], object]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One after the other."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Alternatives:
    """One of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """At least ``low`` times, at most ``high`` times; None for any number."""

    part: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Place:
    """An anchor: ``^``, ``$``, ``\\A``, ``\\Z``, ``\\b``, ``\\B``."""

    anchor: str


@dataclass(frozen=True, eq=False)
class Look:
    """A lookahead, or a lookbehind of ``behind`` characters."""

    part: Node
    wanted: bool
    behind: int | None


ANYTHING = Repeat(Character(lambda character: True), 0, None)
"""Any characters, line ends too."""


def parse_pattern(text: str) -> Node:
    """The tree of a regular expression that `re` compiles.

    Raises:
        ValueError: it has something that is not supported; the message says what.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it has {len(text)} characters; {MAX_LENGTH} are allowed")
    flags = 0
    if text.startswith("(?i)"):
        text, flags = text[4:], re.IGNORECASE
    parser = _Parser(text, flags)
    tree = parser.alternatives(0)
    if parser.at != len(text):
        raise ValueError(f"{text[parser.at :]!r} is not understood")
    return tree


def parse_glob(text: str) -> Node:
    """The tree of a pattern of `fnmatch`: ``*``, ``?`` and ``[...]``, for the whole name.

    Raises:
        ValueError: it is too long.
    """
    parts: list[Node] = []
    at = 0
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an entry of {len(text)} characters; {MAX_LENGTH} are allowed")
    while at < len(text):
        end = at + 1
        if text[at] == "*":
            parts.append(ANYTHING)
        elif text[at] == "?":
            parts.append(ANYTHING.part)
        elif text[at] == "[" and (close := _end_of_set(text, at, escapes=False)) is not None:
            end = close
            parts.append(Character(re.compile(fnmatch.translate(text[at:end])).match))
        else:
            parts.append(Character(text[at].__eq__))
        at = end
    return Sequence((*parts, Place("\\Z")))


def width(node: Node) -> int:
    """How many characters a tree of one width takes."""
    if isinstance(node, Character):
        return 1
    if isinstance(node, Sequence):
        return sum(width(part) for part in node.parts)
    if isinstance(node, Alternatives):
        return width(node.parts[0])
    return width(node.part) * node.low if isinstance(node, Repeat) else 0


def _end_of_set(text: str, at: int, escapes: bool) -> int | None:
    """Where the set that begins at ``at`` ends; None if it does not."""
    end = at + 1
    if text[end : end + 1] == ("^" if escapes else "!"):
        end += 1
    if text[end : end + 1] == "]":
        end += 1
    while end < len(text) and text[end] != "]":
        end += 2 if escapes and text[end] == "\\" else 1
    return end + 1 if end < len(text) else None


_COUNTS = re.compile(r"\{(\d*)(?:(,)(\d*))?\}")
_ESCAPED = {"x": 2, "u": 4, "U": 8}


class _Parser:
    def __init__(self, text: str, flags: int) -> None:
        self.text = text
        self.flags = flags
        self.at = 0

    def take(self, word: str) -> bool:
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def alternatives(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise ValueError(f"groups are nested more than {_MAX_DEPTH} deep")
        parts = [self.sequence(depth)]
        while self.take("|"):
            parts.append(self.sequence(depth))
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.item(depth)))
        return Sequence(tuple(parts))

    def repeated(self, node: Node) -> Node:
        counts = _COUNTS.match(self.text, self.at)
        if self.take("*"):
            low, high = 0, None
        elif self.take("+"):
            low, high = 1, None
        elif self.take("?"):
            low, high = 0, 1
        elif counts is not None and counts[0] != "{}":
            self.at = counts.end()
            low = int(counts[1] or 0)
            high = low if counts[2] is None else int(counts[3]) if counts[3] else None
        else:
            return node
        self.take("?")  # a lazy repetition finds the same names
        if self.take("+"):
            raise ValueError("possessive repetitions are not supported")
        return Repeat(node, low, high)

    def item(self, depth: int) -> Node:
        start = self.at
        character = self.text[start]
        if character == "(":
            return self.group(depth)
        if character == "[":
            self.at = _end_of_set(self.text, start, escapes=True) or len(self.text)
            return self.characters(start)
        self.at += 1
        if character in "^$":
            return Place(character)
        if character == "\\":
            name = self.text[self.at]
            self.at += 1 + _ESCAPED.get(name, 0)
            if name in "AZbBz":  # \\z is \\Z, from Python 3.14 on
                return Place("\\Z" if name == "z" else f"\\{name}")
            if name.isdigit() or name == "N":
                raise ValueError(f"\\{name} is not supported: a reference to a group, or a code")
            return self.characters(start)
        if character == "." or self.flags:
            return self.characters(start)
        return Character(character.__eq__)

    def characters(self, start: int) -> Node:
        return Character(re.compile(self.text[start : self.at], self.flags).match)

    def group(self, depth: int) -> Node:
        start = self.at
        self.at += 1
        if self.take("?#"):
            self.at = self.text.index(")", self.at) + 1
            return Sequence()
        look: tuple[bool, bool] | None = None
        for word, wanted, behind in (
            ("?=", True, False),
            ("?!", False, False),
            ("?<=", True, True),
            ("?<!", False, True),
        ):
            if look is None and self.take(word):
                look = (wanted, behind)
        if look is None and self.take("?P<"):
            self.at = self.text.index(">", self.at) + 1
        elif look is None and not self.take("?:") and self.take("?"):
            raise ValueError(f"{self.text[start : start + 4]!r} is not supported")
        inner = self.alternatives(depth + 1)
        self.take(")")
        if look is None:
            return inner
        return Look(inner, look[0], width(inner) if look[1] else None)
