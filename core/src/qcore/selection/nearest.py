"""``did you mean``: the nearest of the known names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

__all__ = ["nearest"]


def nearest(name: str, known: Sequence[str]) -> str:
    """``; nearest: A, B``, or nothing if no known name is near."""
    folded = {candidate.lower(): candidate for candidate in known}
    close = get_close_matches(name.lower(), list(folded), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(folded[c] for c in close)}" if close else ""
