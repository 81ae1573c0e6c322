"""Text that is final: stop strings and characters that straddle tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from granville_llama.sequence import TextStream
from hypothesis import given
from hypothesis import strategies as st

from tests.drivers import tiny_gguf
from tests.drivers.llama_jobs import Answer, job, load, run

LETTERS = "ab€"


def until_stop(text: str, stops: list[str]) -> str:
    """Written to be obviously right: as each character comes, is one of the stops whole?"""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    text=st.text(LETTERS, max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(1, 40)),
)
def test_any_text_any_stops_any_tokens(text: str, stops: list[str], cuts: set[int]) -> None:
    data = text.encode()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    stream = TextStream(tuple(stops))
    shown, stopped = "", False
    for start, end in itertools.pairwise(bounds):
        if not stopped:
            piece, stopped = stream.feed(data[start:end])
            shown += piece
            assert until_stop(text, stops).startswith(shown)
    if not stopped:
        piece, stopped = stream.flush()
        shown += piece
    assert shown == until_stop(text, stops)
    assert stopped == any(stop in text for stop in stops)


def test_nothing_is_held_back_without_need() -> None:
    stream = TextStream(("END",))
    assert [stream.feed(piece)[0] for piece in (b"a", b"E", b"N", b"x", b"E")] == ["a", "", "", "ENx", ""]
    assert stream.flush() == ("E", False)


@pytest.fixture(scope="module")
def says(models: Path) -> dict[str, Path]:
    euro = tiny_gguf.follows("\nx€", tiny_gguf.token("y"))
    return {"euro": tiny_gguf.alphabet(models / "euro.gguf", euro)}


def answer(path: Path, max_tokens: int, *stop: str) -> Answer:
    model = load(path, slots=1)
    result = run(model, job("x", max_tokens=max_tokens, stop=stop))["x"]
    model.close()
    return result


def test_an_end_of_generation_token_ends_and_is_not_shown(alphabet: Path) -> None:
    result = answer(alphabet, 50)
    assert (result.text, result.reason) == ("abcdefgh", "stop")
    assert result.tokens == tiny_gguf.tokens("abcdefgh")


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (("def",), "abc", "stop"),
        (("a",), "", "stop"),
        (("gh", "fgh", "cd"), "ab", "stop"),
        (("dex", "ghx"), "abcdefgh", "stop"),
        (("xyz",), "abcdefgh", "stop"),
    ],
)
def test_stop_strings(alphabet: Path, stop: tuple[str, ...], text: str, reason: str) -> None:
    result = answer(alphabet, 50, *stop)
    assert (result.text, result.reason) == (text, reason)


def test_text_in_doubt_is_shown_when_max_tokens_ends_the_answer(alphabet: Path) -> None:
    result = answer(alphabet, 5, "defg")
    assert (result.text, result.reason) == ("abcde", "length")
    assert result.pieces == ["a", "b", "c", "", "de"]


def test_a_stop_string_in_the_last_token_counts_as_a_stop(alphabet: Path) -> None:
    result = answer(alphabet, 5, "de")
    assert (result.text, result.reason) == ("abc", "stop")


def test_characters_straddle_tokens(says: dict[str, Path]) -> None:
    result = answer(says["euro"], 6)
    assert result.pieces == ["x", "", "", "€", "y", "z"]


def test_half_a_character_at_the_end_shows_as_such(says: dict[str, Path]) -> None:
    result = answer(says["euro"], 3)
    assert (result.text, result.reason) == ("x\ufffd", "length")
