"""The pure part of a run: what may start, what it sees, what it is called, what it may spend, how long it waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.crucible.running.budget import Budget
from granville.crucible.running.failures import BudgetExceeded, may_be_mended
from granville.crucible.running.keys import checked_run_id, inside, new_run_id, numbered, request_id, wire_session
from granville.crucible.running.patience import MAX_STRAYS, STRAY_S, Patience
from granville.crucible.running.plan import Ended, Frame, in_order_of_turns
from granville.crucible.workflow.model import Limits, Retry, Step
from granville.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    ConnectionLost,
    DriverFailed,
    GranvilleError,
    NoDaemon,
    QueueFull,
)


def steps(*outputs: str) -> list[Step]:
    """`a`, `b`, ... that put out these names."""
    return [Step(id=chr(ord("a") + n), tool="t", output=name) for n, name in enumerate(outputs)]


def ids(ready: list[Step]) -> list[str]:
    return [step.id for step in ready]


def test_a_step_is_ready_once_when_all_that_it_waits_for_has_ended() -> None:
    frame = Frame(steps("x", "y", "z"), {"c": {"a", "b"}}, {})
    assert ids(frame.take_ready()) == ["a", "b"]
    assert ids(frame.take_ready()) == []
    frame.end("b", Ended("finished", 2))
    assert ids(frame.take_ready()) == []
    frame.end("a", Ended("skipped", puts_out=False))
    assert ids(frame.take_ready()) == ["c"]
    frame.end("c", Ended("finished", 3))
    assert frame.is_done
    assert frame.value() == 3


def test_a_step_sees_what_is_listed_before_it_whatever_ended_first() -> None:
    listed = steps("x", "y", "x", "z")
    frame = Frame(listed, {}, {"x": "outer", "steps": {"up": {"output": 1}}})
    frame.end("c", Ended("finished", "late"))
    frame.end("a", Ended("finished", "early"))
    seen = frame.scope(listed[1])
    assert seen["x"] == "early"
    assert set(seen["steps"]) == {"up", "a"}
    assert frame.scope(listed[3])["x"] == "late"
    assert frame.scope()["steps"]["c"]["output"] == "late"


def test_a_skipped_step_leaves_what_its_name_held_or_null() -> None:
    frame = Frame(steps("x", "x", "y"), {}, {})
    frame.end("a", Ended("finished", 1))
    frame.end("b", Ended("skipped", puts_out=False))
    frame.end("c", Ended("failed", puts_out=False, error="broken"))
    assert frame.names() == {"x": 1, "y": None}
    assert frame.scope()["steps"]["c"] | {"state": "failed", "error": "broken"} == frame.scope()["steps"]["c"]
    outer = Frame(steps("x"), {}, {"x": "outer"})
    outer.end("a", Ended("skipped", puts_out=False))
    assert outer.scope()["x"] == "outer"


def test_names_of_a_round_begin_as_the_last_round_left_them() -> None:
    frame = Frame(steps("x", "y"), {}, {"x": "outer"}, start={"x": "last round"})
    assert frame.scope(steps("x")[0])["x"] == "last round"
    frame.end("a", Ended("finished", "this round"))
    assert frame.names() == {"x": "this round"}


@given(st.data())
def test_any_order_of_ends_runs_each_step_once_and_after_what_it_waits_for(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    listed = [Step(id=f"s{n}", tool="t") for n in range(count)]
    waits_for = {f"s{n}": {f"s{m}" for m in range(n) if data.draw(st.booleans())} for n in range(count)}
    frame = Frame(listed, waits_for, {})
    running: list[str] = []
    ended: list[str] = []
    while not frame.is_done:
        started = ids(frame.take_ready())
        for id in started:
            assert waits_for[id] <= set(ended)
        running += started
        assert running, "nothing runs and not all has ended"
        id = running.pop(data.draw(st.integers(0, len(running) - 1)))
        frame.end(id, Ended("finished", id))
        ended.append(id)
    assert sorted(ended) == sorted(waits_for)


def test_keys_say_where_a_step_is() -> None:
    assert inside(numbered("loop", 2)) + "plan" == "loop[2].plan"
    assert inside("sub", "/") + "answer" == "sub/answer"


def test_a_request_has_one_id_for_a_step_and_no_other_has_it() -> None:
    long = "x" * 64
    assert request_id(long, "each[1]") == request_id(long, "each[1]")
    assert len({request_id(run, key) for run in ("r-1", "r-2") for key in ("a", "b")}) == 4
    assert len(request_id(long, "each[1]" * 1000)) <= 128
    assert wire_session("r-1", "talk") == "r-1/talk"
    assert len(wire_session(long, "s" * 5000)) <= 256
    assert wire_session(long, "s" * 5000) != wire_session(long, "s" * 5001)


@pytest.mark.parametrize("id", ["", "-x", "../up", "a/b", "x" * 65, "a b", "a\n"])
def test_what_cannot_be_a_file_is_no_run_id(id: str) -> None:
    with pytest.raises(BadRequest, match="run_id"):
        checked_run_id(id)
    assert checked_run_id(new_run_id())


def test_a_budget_counts_for_the_workflow_and_for_the_one_that_calls_it() -> None:
    outer = Budget(Limits(steps=3), name="the run")
    inner = Budget(Limits(steps=1, tokens=10), name="sub", outer=outer)
    outer.start("a")
    inner.start("sub/a")
    with pytest.raises(BudgetExceeded, match=r"sub has started 1 steps.*sub/b"):
        inner.start("sub/b")
    assert (outer.steps, inner.steps) == (2, 1)
    inner.spend({"prompt_tokens": 100, "cached_tokens": 95, "completion_tokens": 5})
    assert (outer.tokens, inner.tokens) == (10, 10)
    outer.start("b")
    with pytest.raises(BudgetExceeded, match="the run has started 3 steps"):
        outer.start("c")
    tokens = Budget(Limits(tokens=10), name="the run", tokens=10)
    with pytest.raises(BudgetExceeded, match="10 tokens of the 10"):
        tokens.start("x")


@pytest.mark.parametrize(
    ("error", "on", "mended"),
    [
        (DriverFailed("x"), ("any",), True),
        (DriverFailed("x"), ("driver_failed",), True),
        (DriverFailed("x"), ("no_model", "bad_output"), False),
        (BadRequest("x"), ("any",), False),
        (BudgetExceeded("x"), ("any",), False),
    ],
)
def test_which_failures_another_attempt_may_mend(error: GranvilleError, on: tuple[str, ...], mended: bool) -> None:
    assert may_be_mended(error, Retry(on=on)) is mended  # type: ignore[arg-type]


def patience(wait_s: float = 10) -> Patience:
    return Patience(wait_s, lambda low, high: high)


def test_a_full_queue_is_waited_for_as_long_as_it_says_and_without_end() -> None:
    waiting = patience()
    pauses = [waiting.pause_after(QueueFull("x", retry_after_ms=200), n * 100.0, sent_at=0) for n in range(50)]
    assert pauses == [pytest.approx(0.3)] * 50


def test_a_daemon_that_is_away_is_waited_for_with_growing_pauses_up_to_the_bound() -> None:
    waiting, now, pauses = patience(10), 0.0, []
    while (pause := waiting.pause_after(NoDaemon("x"), now, sent_at=now)) is not None:
        pauses.append(pause)
        now += pause
    assert now == pytest.approx(10)
    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert max(pauses) == 2
    waiting.reached()
    assert waiting.pause_after(ConnectionLost("x"), now, sent_at=now) == 0.05


def test_what_an_earlier_life_left_is_waited_out_and_a_cancellation_by_somebody_is_not() -> None:
    waiting = patience()
    assert waiting.pause_after(Cancelled("the client went away"), 1.0, sent_at=0.0) is not None
    assert waiting.pause_after(Cancelled("cancelled by request"), STRAY_S + 1, sent_at=0.0) is None
    waiting = patience()
    pauses = [waiting.pause_after(Conflict("x"), 0.0, sent_at=0.0) for _ in range(MAX_STRAYS + 1)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None
    assert patience().pause_after(DriverFailed("x"), 0.0, sent_at=0.0) is None


def test_turns_of_a_session_follow_each_other_as_they_are_listed() -> None:
    def turn(id: str, session: str | None = None) -> Step:
        return Step(id=id, model_type="inference", input="", session=session)

    listed = [turn("a"), turn("b", "other"), turn("c", ""), Step(id="d", tool="t"), turn("e"), turn("f", "talk")]
    ordered = in_order_of_turns(listed, "talk", {"e": {"d"}})
    assert ordered == {"a": set(), "b": set(), "c": set(), "d": set(), "e": {"a", "d"}, "f": {"e"}}
    assert in_order_of_turns(listed[:1] + listed[4:5], None, {}) == {"a": set(), "e": set()}
