"""Admission: what becomes a job and what is refused, in which order, and when to come again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import (
    Cancelled,
    Conflict,
    GranvilleError,
    NoModel,
    QueueFull,
    ShuttingDown,
    UnknownJob,
    UnknownModel,
    Unsupported,
)
from granville.scheduling.admission import (
    DEFAULT_RETRY_MS,
    MAX_RETRY_MS,
    MIN_RETRY_MS,
    Admission,
    ServiceRate,
)
from granville.scheduling.backlog import Backlog
from granville.scheduling.job import Job, Lane
from granville.scheduling.priority import Priority
from granville.scheduling.roster import ModelEntry, Roster
from granville.scheduling.sessions import MemoryTranscripts, Sessions, Turn
from granville.wire.messages import ErrorReply, Request, Result
from tests.core.jobs import Outbox, make_job

CLIENT = ("1000", "/usr/bin/python3")
INFERENCE: Lane = ("type", "inference")


def make_admission(limit: int = 10, timeout_s: float = 300.0) -> Admission:
    roster = Roster()
    features = frozenset({"messages"})
    roster.add(ModelEntry("llama-1", "inference", "/m.gguf", "fake", state="ready", slots=1, features=features))
    return Admission(Backlog(limit, 30), roster, Sessions(MemoryTranscripts(100)), timeout_s)


def ask(id: str = "r1", **fields: Any) -> Request:
    return Request(id=id, **({"text": "hello"} | fields))


def admit(admission: Admission, request: Request, *, size: int = 100, now: float = 0.0) -> Job:
    return admission.admit(request, size, CLIENT, Outbox(), now)


def state_of(admission: Admission) -> object:
    backlog = admission.backlog
    waiting = backlog.waiting()
    return admission.jobs(), waiting, backlog.counts(), [backlog.position(job) for job in waiting]


def test_an_accepted_request_becomes_a_waiting_job() -> None:
    admission = make_admission()
    request = ask(priority="high", max_tokens=50)
    job = admit(admission, request, size=80, now=7.0)
    assert (job.id, job.request, job.client, job.priority) == ("r1", request, CLIENT, Priority.HIGH)
    assert (job.accepted_at, job.cost, job.state, job.outcome) == (7.0, 80 / 4 + 50, "waiting", None)
    assert admission.find("r1") is job
    assert job in admission.backlog
    assert len(admission) == 1


def test_a_request_without_a_class_is_normal() -> None:
    assert admit(make_admission(), ask()).priority is Priority.NORMAL


@given(timeout_ms=st.none() | st.integers(1, 2**53), now=st.floats(0, 1e6))
def test_the_deadline(timeout_ms: int | None, now: float) -> None:
    job = admit(make_admission(timeout_s=300.0), ask(timeout_ms=timeout_ms), now=now)
    assert job.deadline == now + (300.0 if timeout_ms is None else timeout_ms / 1000)


def test_jobs_are_numbered_by_arrival() -> None:
    admission = make_admission()
    jobs = [admit(admission, ask(f"r{n}")) for n in range(5)]
    assert [job.arrival for job in jobs] == sorted({job.arrival for job in jobs})


@given(limit=st.integers(1, 20), extra=st.integers(1, 5))
def test_the_queue_bound_is_exact_and_a_refusal_changes_nothing(limit: int, extra: int) -> None:
    admission = make_admission(limit)
    for n in range(limit):
        admit(admission, ask(f"r{n}"), now=n)
    before = state_of(admission)
    for n in range(extra):
        with pytest.raises(QueueFull) as refused:
            admit(admission, ask(f"x{n}", priority="critical", session_id="s"), now=limit)
        assert refused.value.retry_after_ms == DEFAULT_RETRY_MS
    assert state_of(admission) == before
    taken = admission.backlog.take([INFERENCE], limit)
    assert taken is not None
    accepted = admit(admission, ask("y", session_id="s"), now=limit)
    with pytest.raises(QueueFull):
        admit(admission, ask("z"), now=limit)
    # The refused turns of the session left nothing behind that this one would wait for.
    admission.backlog.remove(accepted)
    assert admission.sessions.leave(accepted, None) is None


@pytest.mark.parametrize(
    ("closed", "full", "fields", "error"),
    [
        (True, True, {"model_id": "nobody"}, ShuttingDown),
        (False, True, {"model_id": "nobody"}, UnknownModel),
        (False, True, {"model_type": "stt"}, NoModel),
        (False, True, {"grammar": "g"}, Unsupported),
        (False, True, {}, QueueFull),
        (False, False, {"grammar": "g"}, Unsupported),
    ],
)
def test_the_order_of_checks(closed: bool, full: bool, fields: dict[str, Any], error: type[GranvilleError]) -> None:
    """What can never work is said before what would work later."""
    admission = make_admission(limit=1)
    if full:
        admit(admission, ask("first"))
    admission.closed = closed
    before = state_of(admission)
    with pytest.raises(error):
        admit(admission, ask("second", **fields))
    assert state_of(admission) == before


def test_the_same_request_again_is_the_same_job() -> None:
    admission = make_admission()
    assert admission.same(ask()) is None
    job = admit(admission, ask(max_tokens=5))
    again = ask(max_tokens=5, stream=True, timeout_ms=1, callback="/tmp/new.sock")
    assert admission.same(again) is job
    assert len(admission.backlog) == 1


def test_another_request_under_a_live_id_is_a_conflict() -> None:
    admission = make_admission()
    job = admit(admission, ask())
    with pytest.raises(Conflict, match="'r1'"):
        admission.same(ask(text="something else"))
    job.decide(Cancelled("x"))
    with pytest.raises(Conflict):
        admission.same(ask(text="something else"))  # until its end has been delivered
    admission.forget(job)
    assert admission.same(ask(text="something else")) is None


def test_find_and_forget() -> None:
    admission = make_admission()
    with pytest.raises(UnknownJob, match="'r1'"):
        admission.find("r1")
    old = admit(admission, ask())
    admission.forget(old)
    with pytest.raises(UnknownJob):
        admission.find("r1")
    new = admit(admission, ask())
    admission.forget(old)  # a late end of the job that had the id before
    assert admission.find("r1") is new


def test_turns_of_a_session_are_held() -> None:
    admission = make_admission()
    first, second = (admit(admission, ask(id, session_id="s")) for id in ("r1", "r2"))
    assert admission.backlog.take([INFERENCE], 0) is first
    assert admission.backlog.take([INFERENCE], 0) is None
    assert len(admission.backlog) == 1
    assert admission.sessions.leave(first, Turn("assistant", "yes")) is second


def test_a_session_goes_to_the_model_that_holds_it() -> None:
    admission = make_admission()
    features = frozenset({"messages"})
    for id in ("llama-2", "llama-3"):
        entry = ModelEntry(id, "inference", "/m.gguf", "fake", state="ready", slots=1, features=features)
        admission.roster.add(entry)
    first = admit(admission, ask("r1", session_id="s"))
    waits = admit(admission, ask("r2", session_id="s"))
    assert (first.bound_to, waits.bound_to) == (None, None)
    admission.backlog.take([INFERENCE], 0)
    first.model_id = "llama-2"
    assert admission.sessions.leave(first, Turn("assistant", "yes")) is waits
    admission.follow_session(waits)
    admission.backlog.release(waits)
    assert admission.backlog.take([("model", "llama-3"), INFERENCE], 0) is None
    assert admission.backlog.take([("model", "llama-2"), INFERENCE], 0) is waits
    admission.sessions.leave(waits, None)
    assert admit(admission, ask("r3", session_id="s", model_id="llama-3")).bound_to is None
    admission.roster.remove("llama-2")
    assert admit(admission, ask("r4", session_id="s")).bound_to is None, "its model is gone: any will do"


def test_a_waiting_turn_lends_its_class_to_the_one_before() -> None:
    admission = make_admission()
    low = admit(admission, ask("r1", session_id="s", priority="low"))
    normal = admit(admission, ask("r2"))
    admit(admission, ask("r3", session_id="s", priority="critical"))
    assert (low.priority, low.urgency) == (Priority.LOW, Priority.CRITICAL)
    assert admission.backlog.position(low) == 0
    assert admission.backlog.counts() == {"critical": 1, "high": 0, "normal": 1, "low": 1}
    assert admission.backlog.take([INFERENCE], 0) is low
    assert admission.backlog.take([INFERENCE], 0) is normal


def test_the_first_decision_stands() -> None:
    job = make_job()
    outbox = job.delivery
    assert isinstance(outbox, Outbox)
    assert job.decide(Cancelled("by request"))
    assert not job.decide(Result(job.id, "m", "__chat__", '["x"]', "normal"))
    assert job.outcome == ErrorReply(job.id, "cancelled", 499, "by request")
    assert outbox.replies == [job.outcome]
    assert job.state == "delivering"


def steady(interval_s: float, starts: int = 50, together: int = 1) -> tuple[ServiceRate, float]:
    """A queue that is never empty: `together` jobs leave it at once, every `interval_s`."""
    rate = ServiceRate()
    now = 0.0
    for n in range(starts):
        now = n * interval_s
        for _ in range(together):
            rate.started(now, still_waiting=1)
    return rate, now


def test_before_anything_was_measured() -> None:
    rate = ServiceRate()
    assert rate.retry_after_ms(0.0) == rate.retry_after_ms(0.0) == DEFAULT_RETRY_MS
    assert rate.per_second is None
    assert rate.wait_ms(5) is None
    rate.started(1.0, still_waiting=3)
    assert rate.per_second is None


def test_retry_after_is_the_measured_interval() -> None:
    rate, now = steady(0.5)
    assert rate.per_second == pytest.approx(2)
    assert rate.wait_ms(4) == pytest.approx(2000, abs=1)
    assert rate.retry_after_ms(now) == pytest.approx(500, abs=1)


def test_each_refusal_since_the_last_start_comes_a_place_later() -> None:
    rate, now = steady(0.5)
    assert [rate.retry_after_ms(now) for _ in range(3)] == pytest.approx([500, 1000, 1500], abs=2)
    rate.started(now + 0.5, still_waiting=1)
    assert rate.retry_after_ms(now + 0.5) == pytest.approx(500, abs=1)


def test_a_start_that_is_overdue_stretches_the_interval() -> None:
    rate, now = steady(0.5)
    assert rate.retry_after_ms(now + 4) == pytest.approx(4000, abs=1)


def test_retry_after_is_clamped() -> None:
    fast, now = steady(0.0001)
    assert fast.retry_after_ms(now) == MIN_RETRY_MS
    slow, now = steady(1000)
    assert slow.retry_after_ms(now) == MAX_RETRY_MS
    crowd, now = steady(1.0)
    assert max(crowd.retry_after_ms(now) for _ in range(200)) == MAX_RETRY_MS


@pytest.mark.parametrize("together", [2, 8])
def test_jobs_that_start_together_share_an_interval(together: int) -> None:
    """A batch of eight every two seconds is four a second, whenever one looks."""
    rate, now = steady(2.0, together=together)
    assert rate.per_second == pytest.approx(together / 2)
    assert rate.retry_after_ms(now) == pytest.approx(2000 / together, abs=1)


def test_a_batch_alone_measures_nothing() -> None:
    rate, now = steady(1.0, starts=1, together=8)
    assert rate.per_second is None
    assert rate.retry_after_ms(now) == DEFAULT_RETRY_MS


def test_the_rate_follows_a_change() -> None:
    rate, now = steady(1.0)
    for n in range(1, 30):
        rate.started(now + 0.1 * n, still_waiting=1)
    assert rate.per_second == pytest.approx(10, rel=0.05)


def test_time_without_waiting_jobs_does_not_count() -> None:
    rate, now = steady(0.5)
    rate.started(now + 0.5, still_waiting=0)
    rate.started(now + 500, still_waiting=1)
    assert rate.per_second == pytest.approx(2)
    rate.started(now + 500.5, still_waiting=1)
    assert rate.per_second == pytest.approx(2)


def test_time_after_the_queue_was_emptied_by_a_cancel_does_not_count() -> None:
    """The queue may become empty without a start."""
    admission = make_admission()

    def start(now: float) -> None:
        job = admission.backlog.take([INFERENCE], now)
        assert job is not None
        admission.rate.started(now, len(admission.backlog))

    for n in range(5):
        admit(admission, ask(f"r{n}"), now=0)
    for n in range(4):
        start(n)
    assert admission.rate.per_second == pytest.approx(1)
    admission.backlog.remove(admission.find("r4"))
    admit(admission, ask("later"), now=1000)
    start(1000)
    assert admission.rate.per_second == pytest.approx(1)


def test_admission_hands_out_the_measured_time() -> None:
    admission = make_admission(limit=5)
    for n in range(5):
        admit(admission, ask(f"r{n}"), now=0)
    for n in range(3):
        assert admission.backlog.take([INFERENCE], n / 4) is not None
        admission.rate.started(n / 4, len(admission.backlog))
        admit(admission, ask(f"more{n}"), now=n / 4)
    times = []
    for n in range(3):
        with pytest.raises(QueueFull) as refused:
            admit(admission, ask(f"x{n}"), now=0.5)
        times.append(refused.value.retry_after_ms)
    assert times == [250, 500, 750]


def test_answers_that_nobody_takes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granville.scheduling.admission.MAX_UNDELIVERED", 3)
    admission = make_admission()
    for number in range(3):
        job = admit(admission, ask(f"taken{number}"))
        assert admission.backlog.take([job.lane], 0.0) is job
    with pytest.raises(QueueFull, match="callbacks"):
        admit(admission, ask("over"))
    admission.forget(admission.find("taken0"))
    assert admit(admission, ask("next")) in admission.backlog
