"""Sessions: turns in order, a turn committed only when it ends well, a bound on how many are kept."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from granville.scheduling.job import Job
from granville.scheduling.sessions import MemoryTranscripts, Sessions, Turn
from granville.wire.messages import ChatMessage, Request
from tests.core.jobs import make_job


def turn(session_id: str | None = "s", text: str = "hello", **fields: Any) -> Job:
    fields |= {} if "messages" in fields else {"text": text}
    return make_job(request=Request(id=f"{session_id}-{text}", session_id=session_id, **fields))


def make_sessions(max_sessions: int = 100) -> Sessions:
    return Sessions(MemoryTranscripts(max_sessions))


def said(sessions: Sessions, job: Job) -> list[str]:
    return [f"{message.role}: {message.content}" for message in sessions.conversation(job, None)]


def leave(sessions: Sessions, job: Job, answer: str | None) -> Job | None:
    return sessions.leave(job, None if answer is None else Turn("assistant", answer))


def talk(sessions: Sessions, *, session_id: str = "s", text: str, answer: str | None, **fields: Any) -> list[str]:
    """One whole turn; returns what the model read."""
    job = turn(session_id, text, **fields)
    assert not sessions.arrive(job)
    read = said(sessions, job)
    assert leave(sessions, job, answer) is None
    return read


def test_a_request_without_a_session_stands_alone() -> None:
    sessions = make_sessions()
    one, two = turn(None, "a"), turn(None, "b")
    assert not sessions.arrive(one)
    assert not sessions.arrive(two)
    assert said(sessions, two) == ["user: b"]
    assert leave(sessions, one, "x") is None
    assert leave(sessions, two, None) is None


def test_turns_that_were_left_out_are_forgotten_but_no_system_message() -> None:
    sessions = make_sessions()
    told = [("system", "x"), ("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B"), ("user", "c")]
    job = turn("s", "long", messages=[ChatMessage(role, content) for role, content in told])
    sessions.arrive(job)
    sessions.leave(job, Turn("assistant", "C"), dropped_turns=2)
    assert talk(sessions, text="d", answer="D") == [
        "system: x", "user: b", "assistant: B", "user: c", "assistant: C", "user: d",
    ]  # fmt: skip


def test_a_conversation_goes_on() -> None:
    sessions = make_sessions()
    assert talk(sessions, text="a", answer="A") == ["user: a"]
    assert talk(sessions, text="b", answer="B") == ["user: a", "assistant: A", "user: b"]
    assert talk(sessions, session_id="other", text="x", answer="X") == ["user: x"]
    assert talk(sessions, text="c", answer="") == ["user: a", "assistant: A", "user: b", "assistant: B", "user: c"]
    assert talk(sessions, text="d", answer="D")[-2:] == ["assistant: ", "user: d"]


def test_a_turn_that_fails_leaves_no_trace() -> None:
    sessions = make_sessions()
    talk(sessions, text="lost before anything", answer=None)
    talk(sessions, text="a", answer="A")
    talk(sessions, text="lost", answer=None)
    assert talk(sessions, text="b", answer=None) == ["user: a", "assistant: A", "user: b"]


def test_messages_replace_the_history() -> None:
    sessions = make_sessions()
    talk(sessions, text="a", answer="A")
    new = [ChatMessage("system", "be brief"), ChatMessage("user", "b")]
    assert talk(sessions, text="-", answer="B", messages=new) == ["system: be brief", "user: b"]
    assert talk(sessions, text="c", answer="C") == ["system: be brief", "user: b", "assistant: B", "user: c"]


def test_messages_of_a_failed_turn_replace_nothing() -> None:
    sessions = make_sessions()
    talk(sessions, text="a", answer="A")
    talk(sessions, text="-", answer=None, messages=[ChatMessage("user", "x")])
    assert talk(sessions, text="b", answer="B") == ["user: a", "assistant: A", "user: b"]


def test_reset_cache_starts_afresh() -> None:
    sessions = make_sessions()
    talk(sessions, text="a", answer="A")
    assert talk(sessions, text="lost", answer=None, reset_cache=True) == ["user: lost"]
    assert talk(sessions, text="b", answer="B", reset_cache=True) == ["user: b"]
    assert talk(sessions, text="c", answer="C") == ["user: b", "assistant: B", "user: c"]


def test_turns_wait_for_the_one_before() -> None:
    sessions = make_sessions()
    first, second, third = (turn(text=text) for text in "abc")
    assert not sessions.arrive(first)
    assert sessions.arrive(second) == [first]
    assert sessions.arrive(third) == [first, second]
    assert leave(sessions, first, "A") is second
    assert said(sessions, second) == ["user: a", "assistant: A", "user: b"]
    assert leave(sessions, second, None) is third
    assert said(sessions, third) == ["user: a", "assistant: A", "user: c"]
    assert leave(sessions, third, "C") is None


def test_a_waiting_turn_that_ends_changes_nothing() -> None:
    sessions = make_sessions()
    first, second, third = (turn(text=text) for text in "abc")
    for job in (first, second, third):
        sessions.arrive(job)
    assert leave(sessions, second, None) is None
    assert leave(sessions, first, "A") is third
    assert said(sessions, third) == ["user: a", "assistant: A", "user: c"]


@given(st.lists(st.tuples(st.sampled_from("stu"), st.booleans(), st.integers(0, 5)), max_size=30))
def test_one_turn_has_the_floor_and_all_get_it(steps: list[tuple[str, bool, int]]) -> None:
    """Turns arrive, end well or badly, in any order: one job a session may run, in order of arrival, and the history
    is that of the turns that ended well."""
    sessions = make_sessions()
    waiting: dict[str, list[Job]] = {id: [] for id in "stu"}
    history: dict[str, list[str]] = {id: [] for id in "stu"}
    for number, (id, arrives, which) in enumerate(steps):
        turns = waiting[id]
        if arrives or not turns:
            job = turn(id, str(number))
            assert sessions.arrive(job) == turns
            turns.append(job)
            continue
        place = which % len(turns)
        job = turns.pop(place)
        answer = "yes" if place == 0 and which % 2 else None
        if place == 0:
            assert said(sessions, job) == [*history[id], f"user: {job.request.text}"]
        if answer is not None:
            history[id] += [f"user: {job.request.text}", f"assistant: {answer}"]
        assert leave(sessions, job, answer) is (turns[0] if turns and place == 0 else None)


def test_the_longest_quiet_session_is_forgotten_first() -> None:
    sessions = make_sessions(2)
    for id in "abc":
        talk(sessions, session_id=id, text="1", answer="yes")
    assert talk(sessions, session_id="b", text="2", answer="yes")[0] == "user: 1"
    talk(sessions, session_id="d", text="1", answer="yes")
    assert talk(sessions, session_id="b", text="3", answer=None)[0] == "user: 1"
    assert talk(sessions, session_id="a", text="2", answer=None) == ["user: 2"]
    assert talk(sessions, session_id="c", text="2", answer=None) == ["user: 2"]


def test_quiet_since_the_end_of_the_last_turn() -> None:
    """A turn that took long does not make its session the oldest."""
    sessions = make_sessions(1)
    long = turn("long", "a")
    sessions.arrive(long)
    talk(sessions, session_id="short", text="x", answer="X")
    leave(sessions, long, "A")
    assert talk(sessions, session_id="long", text="b", answer=None) == ["user: a", "assistant: A", "user: b"]


def test_a_session_with_a_job_is_never_forgotten() -> None:
    sessions = make_sessions(1)
    talk(sessions, session_id="busy", text="a", answer="A")
    job = turn("busy", "b")
    sessions.arrive(job)
    for n in range(5):
        talk(sessions, session_id=f"s{n}", text="x", answer="X")
    assert said(sessions, job) == ["user: a", "assistant: A", "user: b"]


def test_failed_sessions_push_no_other_out() -> None:
    sessions = make_sessions(1)
    talk(sessions, session_id="kept", text="a", answer="A")
    for n in range(5):
        talk(sessions, session_id=f"failed{n}", text="x", answer=None)
    assert talk(sessions, session_id="kept", text="b", answer=None)[0] == "user: a"


def test_tokens_go_to_the_model_that_said_them() -> None:
    sessions = make_sessions()
    first = turn(text="a")
    sessions.arrive(first)
    first.model_id = "one"
    sessions.leave(first, Turn("assistant", "A", (1, 2)))
    second = turn(text="b")
    sessions.arrive(second)
    assert [message.token_ids for message in sessions.conversation(second, "one")] == [(), (1, 2), ()]
    assert [message.token_ids for message in sessions.conversation(second, "two")] == [(), (), ()]
    sessions.leave(second, None)
    told = [ChatMessage("user", "a"), ChatMessage("assistant", "A"), ChatMessage("user", "c")]
    retold = turn(text="-", messages=told)
    sessions.arrive(retold)
    assert [message.token_ids for message in sessions.conversation(retold, "one")] == [(), (1, 2), ()]
    assert [message.token_ids for message in sessions.conversation(retold, None)] == [(), (), ()]


def test_memory_for_transcripts_is_bounded() -> None:
    sessions = Sessions(MemoryTranscripts(100, max_bytes=1000))
    for id in "abc":
        talk(sessions, session_id=id, text="x" * 300, answer="y" * 100)
    assert len(sessions) == 2
    assert talk(sessions, session_id="a", text="again", answer=None) == ["user: again"]
    talk(sessions, session_id="d", text="x" * 3000, answer="y")
    assert len(sessions) == 0


def test_answers_that_read_alike_keep_their_own_tokens() -> None:
    sessions = make_sessions()
    for text, token_ids in (("a", (1, 2)), ("b", (3,)), ("c", (4,))):
        job = turn("s", text)
        sessions.arrive(job)
        job.model_id = "m"
        sessions.leave(job, Turn("assistant", "yes" if text != "c" else "no", token_ids))
    told = [ChatMessage(each.role, each.content) for each in sessions.history("s", "m")]
    job = turn("s", "d", messages=[*told, ChatMessage("user", "d"), ChatMessage("assistant", "yes")])
    sessions.arrive(job)
    read = [each.token_ids for each in sessions.conversation(job, "m") if each.role == "assistant"]
    assert read == [(1, 2), (3,), (4,), (3,)]
    assert not any(each.token_ids for each in sessions.history("s", "another"))
    assert sessions.history("nobody", "m") == ()
