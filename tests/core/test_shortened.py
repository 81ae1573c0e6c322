"""Which turns of a conversation are left out when it is too long: whole exchanges, the oldest first."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from granville.hosting.interface import Message, shortened
from granville.hosting.shortening import ANSWER_SHARE, KEPT_SHARE
from granville.scheduling.sessions import without_oldest

CONTEXT = 100


def read(messages: Sequence[Message]) -> list[str]:
    """A token a word, and one for each turn."""
    return [word for message in messages for word in (message.role, *message.content.split())]


def talk(*sizes: int, system: int | None = None) -> list[Message]:
    """Question and answer by turns, of so many tokens each."""
    turns = [Message(("user", "assistant")[n % 2], "w " * (size - 1)) for n, size in enumerate(sizes)]
    return turns if system is None else [Message("system", "s " * (system - 1)), *turns]


def left(messages: list[Message], max_tokens: int = 20) -> tuple[int, int]:
    prompt, dropped = shortened(messages, read, context_size=CONTEXT, max_tokens=max_tokens)
    return len(prompt), dropped


def test_what_leaves_room_for_an_answer_stays_whole() -> None:
    assert left(talk(40, 30, 10)) == (80, 0)
    assert left(talk(90), max_tokens=10) == (90, 0)


def test_room_for_an_answer_is_max_tokens_or_a_quarter_of_the_context() -> None:
    assert left(talk(40, 30, 11)) == (11, 2)
    assert left(talk(40, 25, 10), max_tokens=1000) == (75, 0)
    assert left(talk(40, 25, 11), max_tokens=1000) == (11, 2)


def test_half_of_what_is_left_is_kept_so_that_the_next_turns_have_room() -> None:
    assert left(talk(*[10] * 9)) == (30, 6)
    assert left(talk(10, 10, 10, 30, 10, 10, 10)) == (30, 4)
    assert left(talk(*[10] * 7, system=20)) == (30, 6)


def test_where_the_newest_turn_is_long_no_more_goes_than_has_to() -> None:
    assert left(talk(10, 10, 10, 10, 50)) == (70, 2)


def test_the_newest_question_and_the_system_message_stay_whatever_it_costs() -> None:
    assert left(talk(10, 10, 95)) == (95, 2), "a short answer is better than none"
    assert left(talk(10, 10, 110)) == (130, 0), "too long anyhow: that is for the driver to say"
    assert left(talk(120)) == (120, 0)
    assert left(talk(10, 10, 60, system=50)) == (130, 0)
    assert left([Message("assistant", "w " * 200)]) == (201, 0)


def test_calls_of_tools_and_what_came_of_them_go_with_their_question() -> None:
    turns = [
        Message("user", "w " * 30), Message("assistant", "call"), Message("tool", "w " * 30), Message("assistant", "w"),
        Message("user", "w " * 10), Message("assistant", "call"), Message("tool", "w " * 20),
    ]  # fmt: skip
    prompt, dropped = shortened(turns, read, context_size=CONTEXT, max_tokens=20)
    assert (prompt, dropped) == (read(turns[4:]), 4)


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.integers(1, 40)), max_size=30),
    st.integers(1, 200),
)
def test_it_is_what_trying_every_cut_would_find(turns: list[tuple[str, int]], max_tokens: int) -> None:
    messages = [Message(role, "w " * (size - 1)) for role, size in turns]
    prompt, dropped = shortened(messages, read, context_size=CONTEXT, max_tokens=max_tokens)
    assert prompt == read(without_oldest(messages, dropped))
    limit = CONTEXT - min(max_tokens, CONTEXT // ANSWER_SHARE)
    if len(read(messages)) <= limit:
        assert dropped == 0
        return
    said = [message.role for message in messages if message.role != "system"]
    cuts = [count for count, role in enumerate(said) if role == "user" and count]
    sizes = [(count, len(read(without_oldest(messages, count)))) for count in cuts]
    for most in (limit // KEPT_SHARE, limit, CONTEXT - 1):
        fits = [count for count, size in sizes if size <= most]
        if fits:
            assert dropped == min(fits)
            return
    assert dropped == 0
