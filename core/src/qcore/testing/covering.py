"""Covering arrays: few combinations of features in which every pair (or triple) occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

__all__ = ["covering_array"]

Tuple = frozenset[tuple[int, int]]


def covering_array(axes: Mapping[str, Sequence[Any]], strength: int = 2) -> list[dict[str, Any]]:
    """Rows such that any values of any ``strength`` axes occur together in at least one row.

    Greedy and deterministic: the first tuple that no row has yet starts a row, and each free axis
    then takes the value that completes the most missing tuples.

    Args:
        axes: name -> values.
        strength: 2 for pairs, 3 for triples; more than there are axes gives the product.
    """
    names = list(axes)
    sizes = [len(axes[name]) for name in names]
    strength = min(strength, len(names))
    missing: dict[Tuple, None] = {
        frozenset(zip(chosen, values, strict=True)): None
        for chosen in combinations(range(len(names)), strength)
        for values in product(*(range(sizes[axis]) for axis in chosen))
    }
    rows: list[dict[str, Any]] = []
    while missing:
        row = dict(next(iter(missing)))
        for axis in sorted(set(range(len(names))) - set(row), key=lambda a: -sizes[a]):
            # Among equals, values take turns, so that no value is the filler of all rows.
            turns = [(len(rows) + value) % sizes[axis] for value in range(sizes[axis])]
            row[axis] = max(turns, key=lambda value: _gain(row, axis, value, strength, missing))
        for tuple_ in combinations(row.items(), strength):
            missing.pop(frozenset(tuple_), None)
        rows.append({names[axis]: axes[names[axis]][value] for axis, value in sorted(row.items())})
    return rows


def _gain(
    row: Mapping[int, int], axis: int, value: int, strength: int, missing: Mapping[Tuple, None]
) -> int:
    """How many missing tuples ``axis = value`` completes in an unfinished row."""
    mine = (axis, value)
    return sum(
        frozenset((*others, mine)) in missing for others in combinations(row.items(), strength - 1)
    )
