"""A text cut into pieces of a bounded length, where a voice would pause."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PAUSES = (
    re.compile(r"\n\s*\n"),
    re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”]*|\n"),
    re.compile(r"[,;:–—](?=\s)|[，、；：]"),
    re.compile(r"\s"),
)
"""Where it is best to cut comes first: paragraphs, sentences, clauses, words."""


def pieces(text: str, most_chars: int) -> Iterator[str]:
    """Pieces of at most so many characters, none of them blank; joined they are the text but for white space. One that
    has to be cut is cut at the last best place in its second half, and between any two characters where there is
    neither."""
    rest = text.strip()
    while len(rest) > most_chars:
        at = _cut(rest[: most_chars + 1], most_chars)
        if piece := rest[:at].strip():
            yield piece
        rest = rest[at:].lstrip()
    if rest:
        yield rest


def _cut(text: str, most_chars: int) -> int:
    for pause in _PAUSES:
        ends = [found.end() for found in pause.finditer(text) if most_chars // 2 < found.end() <= most_chars]
        if ends:
            return ends[-1]
    return most_chars
