"""A document in passages that a model can read whole: cut at headings, else between paragraphs, else between lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from granville.crucible.search.documents import Line

MAX_CHARS = 1000
"""Of a passage: some 250 tokens of English; small embedding models read 512."""
OVERLAP_CHARS = 150
"""Of the end of a passage, whole lines, that the next one begins with, where both are under one heading."""
MAX_TITLE_CHARS = 200
MAX_CHUNKS = 20_000
"""Of one document; what comes behind them is left out."""


@dataclass(frozen=True, slots=True)
class Chunk:
    title: str
    """The headings that it is under, the highest first."""
    text: str
    start_line: int
    end_line: int


def cut(lines: Sequence[Line], *, max_chars: int = MAX_CHARS, overlap_chars: int = OVERLAP_CHARS) -> list[Chunk]:
    """Passages of at most `max_chars` characters, in the order of the document. What has only white space is none."""
    found: list[Chunk] = []
    headings: list[tuple[int, str]] = []
    section: list[Line] = []

    def end_section() -> None:
        title = " › ".join(text for _, text in headings)[:MAX_TITLE_CHARS]
        found.extend(_passages(title, section, max_chars, overlap_chars))
        section.clear()

    for line in lines:
        if line.heading:
            end_section()
            headings = [one for one in headings if one[0] < line.heading] + [(line.heading, line.text)]
        section.append(line)
    end_section()
    return found[:MAX_CHUNKS]


def _passages(title: str, lines: Sequence[Line], max_chars: int, overlap_chars: int) -> Iterator[Chunk]:
    held: list[Line] = []
    fresh = False
    """Something is held that no passage has had yet."""
    overlap_chars = min(overlap_chars, max_chars // 2)
    for paragraph in _paragraphs(lines, max_chars, max_chars - overlap_chars):
        size = _size(paragraph)
        if held and _size(held) + size > max_chars:
            if fresh:
                yield _chunk(title, held)
            held = _tail(held, min(overlap_chars, max_chars - size)) if fresh else []
        held = [*held, *paragraph]
        fresh = True
    if fresh:
        yield _chunk(title, held)


def _paragraphs(lines: Sequence[Line], max_chars: int, piece_chars: int) -> Iterator[list[Line]]:
    """Lines up to an empty one. A longer one is cut, which leaves room for what its pieces have in common."""
    for is_empty, group in groupby(lines, key=lambda line: not line.text.strip()):
        paragraph = list(group)
        if is_empty:
            continue
        if _size(paragraph) <= max_chars:
            yield paragraph
        else:
            yield from _pieces(paragraph, piece_chars)


def _pieces(lines: Sequence[Line], most_chars: int) -> Iterator[list[Line]]:
    """Cut between lines, and a line that is too long alone anywhere."""
    held: list[Line] = []
    held_chars = 0
    for line in lines:
        for start in range(0, len(line.text), most_chars):
            piece = Line(line.number, line.text[start : start + most_chars], line.heading)
            if held and held_chars + len(piece.text) + 1 > most_chars:
                yield held
                held, held_chars = [], 0
            held.append(piece)
            held_chars += len(piece.text) + 1
    if held:
        yield held


def _tail(lines: Sequence[Line], most_chars: int) -> list[Line]:
    kept: list[Line] = []
    for line in reversed(lines):
        if line.heading or _size(kept) + len(line.text) + 1 > most_chars:
            break
        kept.insert(0, line)
    return kept


def _size(lines: Sequence[Line]) -> int:
    """With a line end behind each."""
    return sum(len(line.text) + 1 for line in lines)


def _chunk(title: str, lines: Sequence[Line]) -> Chunk:
    text = "\n".join(line.text for line in lines).strip("\n")
    return Chunk(title, text, lines[0].number, lines[-1].number)
