"""Did you mean: what a wrong name may have been."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_LISTED = 8


def did_you_mean(name: str, known: Iterable[str], *, none: str = "there are none", at_most: int | None = None) -> str:
    """The end of a sentence about an unknown name: the nearest of those that there are, else all of them. With
    `at_most` only if there are no more of them than that."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name[:200], names, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not names:
        return none
    if at_most is not None and len(names) > at_most:
        return "docs/crucible-language.md lists those that there are"
    return f"known: {', '.join(names[:MAX_LISTED])}{', …' if len(names) > MAX_LISTED else ''}"
