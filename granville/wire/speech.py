"""What the `output` of a transcript is."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class Word(Struct, frozen=True):
    """Times are seconds from the recording's start."""

    start: float
    end: float
    word: str
    probability: float


class Segment(Struct, frozen=True):
    """A sentence or so."""

    start: float
    end: float
    text: str
    words: list[Word] | UnsetType = UNSET
    """When they were asked for."""


class Heard(Struct, frozen=True):
    language: str | None
    """ISO 639-1, as asked for or found out."""
    duration_s: float
    segments: list[Segment]
