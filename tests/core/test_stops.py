"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from granville.hosting.stops import StopText


def run(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    stops = StopText(stop)
    shown = ""
    for piece in pieces:
        text, stopped = stops.feed(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + stops.rest(), False


def naive(stop: tuple[str, ...], text: str) -> tuple[str, bool]:
    """Character by character: the answer ends as soon as what was said ends with a stop string."""
    for end in range(1, len(text) + 1):
        ended = [one for one in stop if one and text[:end].endswith(one)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@given(
    stop=st.lists(st.text("ab", max_size=4), max_size=3).map(tuple),
    pieces=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_how_the_text_is_cut_makes_no_difference(stop: tuple[str, ...], pieces: list[str]) -> None:
    assert run(stop, pieces) == naive(stop, "".join(pieces))


def test_what_cannot_become_a_stop_string_is_shown_at_once() -> None:
    stops = StopText(("END",))
    assert stops.feed("one E") == ("one ", False)
    assert stops.feed("N") == ("", False)
    assert stops.feed("ding") == ("ENding", False)
    assert stops.feed("E") == ("", False)
    assert stops.rest() == "E"
