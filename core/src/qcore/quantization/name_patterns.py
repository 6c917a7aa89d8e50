"""`NamePattern`: a checkpoint's pattern against a layer's name, in bounded time.

`re` tries one way after the other, and a pattern such as ``(a+)+$`` makes it try 2**n of them. Here
all ways are followed at once (Thompson's construction): a pattern of m characters and a name of n
take at most about m * n steps, with lookarounds m * n * n. Sets of states that were met before are
remembered with where they lead, so that a name costs one look-up a character as a rule.

Steps are counted, and all patterns of one config share an allowance (`pattern_allowance`), so that
many patterns on many layers are bounded as well. The count, not a clock, ends the work: the same
checkpoint is always accepted or always refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.quantization.json_text import shown
from qcore.quantization.pattern_syntax import (
    ANYTHING,
    MAX_LENGTH,
    Alternatives,
    Character,
    Look,
    Node,
    Place,
    Sequence,
    parse_glob,
    parse_pattern,
)

__all__ = ["MAX_STEPS", "Globs", "NamePattern", "compile_pattern", "pattern_allowance"]

MAX_STEPS = 10**8
"""Of one config. A pattern on the 47,000 layers of DeepSeek V3 takes some 2 * 10**6."""

_MAX_NODES = 4096
_MAX_ALL_NODES = _MAX_REMEMBERED = 1 << 18


class _Allowance:
    """What the patterns of a config may take together.

    Attributes:
        steps: taken so far.
        nodes: left.
        remembered: states and ways that are kept now.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.nodes = _MAX_ALL_NODES
        self.remembered = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(
                f"the patterns of the quantization config take more than {MAX_STEPS} steps on the "
                "names of this checkpoint's layers; no sane config needs so many"
            )


_shared: ContextVar[_Allowance | None] = ContextVar("pattern_allowance", default=None)


@contextlib.contextmanager
def pattern_allowance() -> Iterator[_Allowance]:
    """Patterns that are compiled inside share one allowance of steps."""
    allowance = _Allowance()
    token = _shared.set(allowance)
    try:
        yield allowance
    finally:
        _shared.reset(token)


# -- the automaton -----------------------------------------------------------------------------


@dataclass(eq=False)
class _Split:
    """Goes on in every one of ``ways``, without a character."""

    ways: list[_State] = field(default_factory=list)


@dataclass(eq=False)
class _Step:
    """Takes a character."""

    fits: Any
    way: _State


@dataclass(eq=False)
class _Test:
    """Goes on where a condition on the place holds."""

    condition: Place | _Condition
    way: _State


@dataclass(eq=False)
class _Condition:
    """A lookaround: another automaton, and where it begins."""

    automaton: _Automaton
    wanted: bool
    behind: int


_State = _Split | _Step | _Test
_FOUND = _Split()


class _Known:
    """A set of states that was met, and what follows from it.

    Attributes:
        core: the states.
        conditions: those that may be asked for before the next character.
        ways: next character (and conditions' answers) -> the next set; True for a match, False
            where none is left.
    """

    __slots__ = ("conditions", "core", "ways")

    def __init__(self, core: tuple[_State, ...]) -> None:
        self.core = core
        self.conditions: tuple[Place | _Condition, ...] = ()
        self.ways: dict[Any, _Known | bool] = {}


class _Automaton:
    """Finds whether a name matches from a place on."""

    def __init__(self, tree: Node, allowance: _Allowance, nodes: int = _MAX_NODES) -> None:
        self.allowance = allowance
        self.nodes = nodes
        self.first = self._build(tree, _FOUND)
        self.remembered = 0
        self._forget()

    def _forget(self) -> None:
        self.known: dict[tuple[_State, ...], _Known] = {}
        self.allowance.remembered -= self.remembered
        self.remembered = 0
        self.start = self._know((self.first,))

    def _build(self, node: Node, then: _State) -> _State:
        self.nodes -= 1
        self.allowance.nodes -= 1
        if min(self.nodes, self.allowance.nodes) < 0:
            raise ValueError("with its repetitions written out it, or the whole list, is too long")
        if isinstance(node, Character):
            return _Step(node.fits, then)
        if isinstance(node, Sequence):
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if isinstance(node, Alternatives):
            return _Split([self._build(part, then) for part in node.parts])
        if isinstance(node, Place):
            return _Test(node, then)
        if isinstance(node, Look):
            inner = _Automaton(node.part, self.allowance, self.nodes)
            self.nodes = inner.nodes
            return _Test(_Condition(inner, node.wanted, node.behind or 0), then)
        if node.high is None:
            loop = _Split([then])
            loop.ways.append(self._build(node.part, loop))
            then = loop
        else:
            for _ in range(node.high - node.low):
                then = _Split([then, self._build(node.part, then)])
        for _ in range(node.low):
            then = self._build(node.part, then)
        return then

    def matches(self, text: str, start: int = 0, memory: dict[Any, bool] | None = None) -> bool:
        """Whether there is a match that begins at ``start``."""
        memory = {} if memory is None else memory
        known = self.start
        for at, character in enumerate([*text[start:], ""], start):
            key: Any = character
            if known.conditions:
                key = (character, *[_holds(c, text, at, memory) for c in known.conditions])
            found = known.ways.get(key)
            if found is None:
                found = self._follow(known, key)
            if found is True or found is False:
                break
            known = found
        self.allowance.spend(at - start + 1)
        return found is True

    def _know(self, core: tuple[_State, ...]) -> _Known:
        known = self.known.get(core)
        if known is None:
            known = self.known[core] = _Known(core)
            reached = self._reached(core, None)
            tests = (state.condition for state in reached if isinstance(state, _Test))
            known.conditions = tuple(dict.fromkeys(tests))
        return known

    def _reached(
        self, core: Iterable[_State], answers: dict[Place | _Condition, bool] | None
    ) -> list[_State]:
        """The states that no character is needed for; without answers, all conditions hold."""
        met: dict[_State, None] = {}
        waiting = list(core)[::-1]
        while waiting:
            state = waiting.pop()
            if state in met:
                continue
            met[state] = None
            if isinstance(state, _Split):
                waiting += reversed(state.ways)
            elif isinstance(state, _Test) and (answers is None or answers[state.condition]):
                waiting.append(state.way)
        self.allowance.spend(len(met))
        return list(met)

    def _follow(self, known: _Known, key: Any) -> _Known | bool:
        character, *values = key if isinstance(key, tuple) else (key,)
        answers = dict(zip(known.conditions, values, strict=True))
        reached = self._reached(known.core, answers)
        result: _Known | bool
        if _FOUND in reached:
            result = True
        else:
            steps = [state for state in reached if isinstance(state, _Step)]
            core = tuple(dict.fromkeys(s.way for s in steps if character and s.fits(character)))
            self.remembered += 1 + len(core)
            self.allowance.remembered += 1 + len(core)
            if self.allowance.remembered > _MAX_REMEMBERED:
                self._forget()
            result = self._know(core) if core else False
        known.ways[key] = result
        return result


_BOUNDARIES = {"\\b": re.compile(r"\b"), "\\B": re.compile(r"\B")}


def _holds(condition: Place | _Condition, text: str, at: int, memory: dict[Any, bool]) -> bool:
    if isinstance(condition, Place):
        anchor = condition.anchor
        if anchor in _BOUNDARIES:
            return _BOUNDARIES[anchor].match(text, at) is not None
        if anchor in ("^", "\\A"):
            return at == 0
        return at == len(text) or (anchor == "$" and at == len(text) - 1 and text[at] == "\n")
    key = (condition, at)
    if key not in memory:
        start = at - condition.behind
        found = start >= 0 and condition.automaton.matches(text, start, memory)
        memory[key] = found == condition.wanted
    return memory[key]


# -- what configs have -------------------------------------------------------------------------


class NamePattern:
    """A regular expression, with the methods of `re.Pattern` that say whether it fits.

    Args:
        text: the expression.

    Raises:
        ValueError: it is none, or has something that is not supported.
    """

    def __init__(self, text: str) -> None:
        if len(text) <= MAX_LENGTH:  # else parsing says so
            try:
                re.compile(text)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"it is no regular expression: {error}") from None
        self.pattern = text
        self._tree = parse_pattern(text)
        self._allowance = _shared.get() or _Allowance()
        self._automata: dict[str, _Automaton] = {}
        self._automaton("match")

    def _automaton(self, how: str) -> _Automaton:
        if how not in self._automata:
            tree = self._tree
            if how == "search":
                tree = Sequence((ANYTHING, tree))
            elif how == "fullmatch":
                tree = Sequence((tree, Place("\\Z")))
            self._automata[how] = _Automaton(tree, self._allowance)
        return self._automata[how]

    def match(self, name: str) -> bool:
        """Whether it matches from the name's beginning."""
        return self._automaton("match").matches(name)

    def search(self, name: str) -> bool:
        """Whether it matches anywhere."""
        return self._automaton("search").matches(name)

    def fullmatch(self, name: str) -> bool:
        """Whether it matches the whole name."""
        return self._automaton("fullmatch").matches(name)


def compile_pattern(text: str, where: str) -> NamePattern:
    """A regular expression of a checkpoint.

    Args:
        text: the expression.
        where: the field's name in messages.

    Raises:
        CheckpointError: it is none.
        UnsupportedQuantizationError: it has something that is not supported.
    """
    try:
        return NamePattern(text)
    except ValueError as error:
        none = str(error).startswith("it is no")
        kind = CheckpointError if none else UnsupportedQuantizationError
        raise kind(f"{where}: {shown(text)} cannot be used as a pattern: {error}") from None


class Globs:
    """A list of names with ``*``, ``?`` and ``[...]``, as `fnmatch` has them; all tried at once.

    Args:
        entries: the list.
        where: its name in messages.

    Raises:
        UnsupportedQuantizationError: the list is too long.
    """

    def __init__(self, entries: Iterable[str], where: str) -> None:
        entries = list(dict.fromkeys(entries))
        self.names = frozenset(entry for entry in entries if not set(entry) & set("*?["))
        globs = [entry for entry in entries if entry not in self.names]
        try:
            tree = Alternatives(tuple(parse_glob(glob) for glob in globs))
            self._automaton = _Automaton(tree, _shared.get() or _Allowance(), _MAX_ALL_NODES)
        except ValueError as error:
            raise UnsupportedQuantizationError(f"{where}: {error}") from None

    def match(self, name: str) -> bool:
        """Whether an entry is this name."""
        return name in self.names or self._automaton.matches(name)
