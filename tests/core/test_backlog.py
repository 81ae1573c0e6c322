"""The backlog: against a naive model, and each of its promises by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from granville.errors import QueueFull
from granville.scheduling.backlog import Backlog
from granville.scheduling.job import Job, Lane
from granville.scheduling.priority import Priority
from granville.wire.messages import Class
from tests.core.jobs import make_job
from tests.core.naive import NaiveBacklog

INFERENCE: Lane = ("type", "inference")
LANES: tuple[Lane, ...] = (INFERENCE, ("model", "m1"), ("model", "m2"))
AGE_AFTER_S = 30
LIMIT = 12

P = ParamSpec("P")
T = TypeVar("T")

classes = st.sampled_from(get_args(Class))


class BacklogMachine(RuleBasedStateMachine):
    """Whole numbers throughout, so that no rounding hides or makes a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog(LIMIT, AGE_AFTER_S)
        self.naive = NaiveBacklog(LIMIT, AGE_AFTER_S)
        self.now = 0
        self.running: list[tuple[Job, Priority]] = []

    def pick(self, data: st.DataObject, jobs: list[Job]) -> Job:
        return jobs[data.draw(st.integers(0, len(jobs) - 1))]

    @rule(
        client=st.sampled_from("abc"),
        priority=classes,
        cost=st.integers(1, 50),
        patience=st.integers(1, 100),
        model_id=st.sampled_from([None, None, "m1", "m2"]),
        held=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def add(self, client: str, priority: Class, cost: int, patience: int, model_id: str | None, held: int) -> None:
        job = make_job(
            client=client,
            priority=priority,
            cost=cost,
            deadline=self.now + patience,
            accepted_at=self.now,
            model_id=model_id,
        )
        if self.naive.add(job, self.now, held=held):
            self.backlog.add(job, self.now, held=held)
        else:
            with pytest.raises(QueueFull):
                self.backlog.add(job, self.now, held=held)
            assert job not in self.backlog

    @rule(lanes=st.lists(st.sampled_from(LANES), min_size=1, max_size=3, unique=True).map(tuple))
    def take(self, lanes: tuple[Lane, ...]) -> None:
        levels = {place.job: place for place in self.naive.waiting}
        expected = self.naive.take(lanes, self.now)
        assert self.backlog.take(lanes, self.now) is expected
        if expected is not None:
            self.running.append((expected, levels[expected].level))

    @rule(
        lanes=st.lists(st.sampled_from(LANES), min_size=1, max_size=3, unique=True).map(tuple),
        than=st.sampled_from(Priority),
    )
    def take_more_urgent(self, lanes: tuple[Lane, ...], than: Priority) -> None:
        levels = {place.job: place for place in self.naive.waiting}
        expected = self.naive.take_more_urgent(lanes, than)
        assert self.backlog.take_more_urgent(lanes, than) is expected
        if expected is not None:
            self.running.append((expected, levels[expected].level))

    @precondition(lambda self: self.naive.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        job = self.pick(data, [place.job for place in self.naive.waiting])
        self.naive.remove(job)
        self.backlog.remove(job)

    @precondition(lambda self: self.naive.waiting)
    @rule(data=st.data(), model_id=st.sampled_from([None, "m1", "m2"]))
    def rebind(self, data: st.DataObject, model_id: str | None) -> None:
        job = self.pick(data, [place.job for place in self.naive.waiting])
        before = job.bound_to
        self.naive.rebind(job, model_id)
        job.bound_to = before  # it is the same job for both
        self.backlog.rebind(job, model_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), held=st.sampled_from([0, 0, 1]))
    def put_back(self, data: st.DataObject, held: int) -> None:
        job, level = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.naive.put_back(job, level, held=held)
        self.backlog.put_back(job, held=held)

    @precondition(lambda self: self.naive.waiting)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        job = self.pick(data, [place.job for place in self.naive.waiting])
        self.naive.hold(job)
        self.backlog.hold(job)

    @precondition(lambda self: self.naive.waiting)
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def reclass(self, data: st.DataObject, priority: Priority) -> None:
        job = self.pick(data, [place.job for place in self.naive.waiting])
        own = job.priority
        self.naive.reclass(job, priority, self.now)
        job.priority = own  # it is the same job for both
        self.backlog.reclass(job, priority, self.now)

    @precondition(lambda self: self.naive.waiting or self.running)
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def lend(self, data: st.DataObject, priority: Priority) -> None:
        job = self.pick(data, [place.job for place in self.naive.waiting] + [job for job, _ in self.running])
        own = job.lent
        self.naive.lend(job, priority)
        job.lent = own  # it is the same job for both
        self.backlog.lend(job, priority)

    @precondition(lambda self: any(place.held for place in self.naive.waiting))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job = self.pick(data, [place.job for place in self.naive.waiting if place.held])
        self.naive.release(job)
        self.backlog.release(job)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), actual=st.integers(0, 100))
    def settle(self, data: st.DataObject, actual: int) -> None:
        job, level = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.naive.settle(job, level, actual)
        self.backlog.settle(job, actual)

    @rule(seconds=st.integers(1, 40) | st.just(4 * AGE_AFTER_S))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def the_same_jobs_wait(self) -> None:
        waiting = [place.job for place in self.naive.waiting]
        assert len(self.backlog) == len(waiting)
        assert self.naive.counted <= LIMIT
        assert self.backlog.full == (self.naive.counted == LIMIT)
        assert set(self.backlog.waiting()) == set(waiting)
        assert self.backlog.counts() == {
            level.wire: sum(job.priority == level for job in waiting) for level in Priority
        }
        for lane in LANES:
            assert self.backlog.waiting_for([lane]) == sum(job.lane == lane for job in waiting)
        assert self.backlog.waiting_for(LANES) == len(waiting)
        assert self.backlog.oldest_accepted_at() == min((job.accepted_at for job in waiting), default=None)
        assert [self.backlog.position(job) for job in waiting] == [self.naive.position(job) for job in waiting]


TestBacklogMachine = BacklogMachine.TestCase
TestBacklogMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def drain(backlog: Backlog, now: float = 0.0) -> list[Job]:
    taken = []
    while (job := backlog.take([INFERENCE], now)) is not None:
        taken.append(job)
    return taken


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_bound_is_exact(limit: int) -> None:
    backlog = Backlog(limit, AGE_AFTER_S)
    jobs = [make_job() for _ in range(limit)]
    for n, job in enumerate(jobs):
        assert not backlog.full
        backlog.add(job, n, held=n % 3 == 2)  # held jobs count too
    extra = make_job(priority="critical")
    before = (backlog.waiting(), backlog.counts(), [backlog.position(job) for job in jobs])
    with pytest.raises(QueueFull):
        backlog.add(extra, limit)
    assert before == (backlog.waiting(), backlog.counts(), [backlog.position(job) for job in jobs])
    backlog.remove(jobs[-1])
    backlog.add(extra, limit)
    assert backlog.full


@given(st.lists(classes, max_size=40))
def test_classes_in_order_and_arrival_within(given_classes: list[Class]) -> None:
    backlog = Backlog(1000, AGE_AFTER_S)
    jobs = [make_job(priority=name) for name in given_classes]
    for job in jobs:
        backlog.add(job, 0)
    assert drain(backlog) == sorted(jobs, key=lambda job: (job.priority, job.arrival))


def test_a_critical_job_behind_a_hundred_low_ones_is_next() -> None:
    backlog = Backlog(1000, AGE_AFTER_S)
    for _ in range(100):
        backlog.add(make_job(priority="low"), 0)
    critical = make_job(priority="critical")
    backlog.add(critical, 1)
    assert backlog.position(critical) == 0
    assert backlog.take([INFERENCE], 1) is critical


def test_the_earliest_deadline_goes_first_within_a_client() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    late, soon, sooner, as_soon = (make_job(deadline=deadline) for deadline in (100, 20, 10, 20))
    for job in (late, soon, sooner, as_soon):
        backlog.add(job, 0)
    assert drain(backlog) == [sooner, soon, as_soon, late]


def test_a_deadline_gains_nothing_over_another_client() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    first, second = make_job(client="a", deadline=1000), make_job(client="b", deadline=1)
    backlog.add(first, 0)
    backlog.add(second, 0)
    assert drain(backlog) == [first, second]


def test_lanes_keep_bound_jobs_for_their_model() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    bound, free = make_job(model_id="m1", priority="critical"), make_job(priority="low")
    backlog.add(bound, 0)
    backlog.add(free, 0)
    assert backlog.take([("model", "m2")], 0) is None
    assert backlog.take([("model", "m2"), INFERENCE], 0) is free
    assert backlog.take([("model", "m2"), INFERENCE], 0) is None
    assert backlog.take([("model", "m1"), INFERENCE], 0) is bound


def test_a_job_that_is_put_back_is_as_old_as_it_is_and_takes_no_place() -> None:
    backlog = Backlog(2, AGE_AFTER_S)
    first, second, third = (make_job(client=client, accepted_at=n) for n, client in enumerate("abc"))
    backlog.add(first, 0)
    assert backlog.take([INFERENCE], 0) is first
    backlog.add(second, 1)
    backlog.add(third, 2)
    assert backlog.full
    backlog.put_back(first)
    assert (len(backlog), backlog.full, backlog.position(first)) == (3, True, 0)
    with pytest.raises(QueueFull):
        backlog.add(make_job(), 3)
    backlog.remove(third)
    backlog.add(make_job(), 3)
    assert backlog.take([INFERENCE], AGE_AFTER_S) is first  # it has aged as one that waited all the time
    assert backlog.full


def test_a_job_that_is_put_back_is_not_charged_twice() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    mine, other = make_job(client="a", cost=1000), make_job(client="b", cost=10)
    backlog.add(mine, 0)
    assert backlog.take([INFERENCE], 0) is mine
    backlog.put_back(mine)
    backlog.add(other, 1)
    assert drain(backlog, 1) == [mine, other]


def test_a_job_that_is_bound_elsewhere_keeps_its_age() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    moved, other = make_job(client="a"), make_job(client="b")
    backlog.add(moved, 0)
    backlog.add(other, 1)
    backlog.rebind(moved, "m1")
    assert (backlog.position(moved), len(backlog)) == (0, 2)
    assert backlog.waiting_for([("model", "m1")]) == 1
    assert backlog.take([("model", "m2")], 1) is None
    assert backlog.take([("model", "m1")], 1) is moved
    assert drain(backlog, 1) == [other]


def test_a_held_job_waits_for_its_release() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    held, other = make_job(priority="critical"), make_job(priority="low")
    backlog.add(held, 0, held=True)
    backlog.add(other, 0)
    assert len(backlog) == 2
    assert drain(backlog) == [other]
    backlog.release(held)
    assert drain(backlog) == [held]


@pytest.mark.parametrize(
    ("waited", "beaten"),
    [
        (AGE_AFTER_S - 1, None),
        (AGE_AFTER_S, "normal"),
        (2 * AGE_AFTER_S - 1, "normal"),
        (2 * AGE_AFTER_S, "high"),
        (3 * AGE_AFTER_S - 1, "high"),
        (3 * AGE_AFTER_S, "critical"),
    ],
)
def test_a_low_job_rises_a_class_each_time(waited: int, beaten: Class | None) -> None:
    """Also when nothing was taken meanwhile. It is compared with a job of another client in each class, given now."""
    for name in get_args(Class)[:-1]:
        backlog = Backlog(10, AGE_AFTER_S)
        old, fresh = make_job(client="a", priority="low"), make_job(client="b", priority=name)
        backlog.add(old, 0)
        backlog.take([("model", "m1")], waited)  # ages what has waited
        backlog.add(fresh, waited)
        wins = beaten is not None and Priority.of(beaten) <= Priority.of(name)
        assert backlog.take([INFERENCE], waited) is (old if wins else fresh)
        assert old.priority is Priority.LOW


def test_who_came_first_takes_a_slot_first_whatever_was_done_to_its_place() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    first, second, third = (make_job(client=client, priority="high") for client in "abc")
    for n, job in enumerate((first, second, third)):
        backlog.add(job, n)
    backlog.take([("model", "m1")], AGE_AFTER_S)  # ages the first
    backlog.hold(second)
    backlog.release(second)
    assert [backlog.take_more_urgent([INFERENCE], Priority.NORMAL) for _ in range(4)] == [first, second, third, None]


def test_lending_what_a_job_has_costs_it_no_turn() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    first, second = make_job(client="a", priority="high"), make_job(client="b", priority="high")
    backlog.add(first, 0)
    backlog.add(second, 0)
    backlog.lend(first, Priority.HIGH)
    assert first.lent is Priority.HIGH  # kept, should it be given a lower class
    assert drain(backlog) == [first, second]


@given(others=st.integers(1, 6), costs=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_low_never_starves(others: int, costs: list[int]) -> None:
    """Clients that each always have critical jobs waiting do not keep a low job out: once it has aged to critical,
    one of its turns is enough."""
    backlog = Backlog(1000, AGE_AFTER_S)
    low = make_job(client="z", priority="low")
    backlog.add(low, 0)
    rounds = 0
    for client in range(others):
        for _ in range(3):
            backlog.add(make_job(client=f"c{client}", priority="critical", cost=costs[0], deadline=300), 0)
    for now in range(1, 3 * AGE_AFTER_S + 50 * others):
        job = backlog.take([INFERENCE], now)
        assert job is not None
        if job is low:
            break
        cost = costs[now % len(costs)]
        backlog.add(make_job(client=job.client[1], priority="critical", cost=cost, deadline=now + 300), now)
        rounds += now >= 3 * AGE_AFTER_S
    assert job is low
    assert now >= 3 * AGE_AFTER_S
    assert rounds <= others * max(costs) // min(costs) + others


def test_settling_charges_the_class_that_the_job_was_taken_from() -> None:
    """A job that aged was charged in the higher class: there its client gets back what it did not use."""
    backlog = Backlog(10, AGE_AFTER_S)
    aged = make_job(client="a", priority="low", cost=100)
    backlog.add(aged, 0)
    assert backlog.take([INFERENCE], AGE_AFTER_S) is aged
    mine, theirs = (make_job(client=client, cost=10) for client in "ab")
    backlog.settle(aged, 0)
    backlog.add(mine, AGE_AFTER_S)
    backlog.add(theirs, AGE_AFTER_S)
    assert drain(backlog, AGE_AFTER_S) == [mine, theirs]


def test_only_a_taken_job_can_be_settled() -> None:
    backlog = Backlog(10, AGE_AFTER_S)
    job = make_job()
    backlog.add(job, 0)
    with pytest.raises(ValueError, match="taken"):
        backlog.settle(job, 5)


class Counted(float):
    """A number that counts what is done with it."""

    operations = 0

    @classmethod
    def count(cls) -> None:
        cls.operations += 1

    def __lt__(self, other: float) -> bool:
        self.count()
        return float(self) < float(other)

    def __gt__(self, other: float) -> bool:
        self.count()
        return float(self) > float(other)

    def __le__(self, other: float) -> bool:
        self.count()
        return float(self) <= float(other)

    def __ge__(self, other: float) -> bool:
        self.count()
        return float(self) >= float(other)

    def __eq__(self, other: object) -> bool:
        self.count()
        return isinstance(other, float | int) and float(self) == float(other)

    __hash__ = float.__hash__

    def __add__(self, other: float) -> Counted:
        return Counted(float(self) + float(other))

    __radd__ = __add__


def cost_of(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, int]:
    """Its result, and the bytecode instructions that it executes together with the comparisons between keys; the
    second show what is done in C."""
    instructions = 0

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        nonlocal instructions
        frame.f_trace_opcodes = True
        instructions += event == "opcode"
        return trace

    before, tracer = Counted.operations, sys.gettrace()
    sys.settrace(trace)
    try:
        result = action(*args, **kwargs)
    finally:
        sys.settrace(tracer)
    return result, instructions + Counted.operations - before


def crowd(waiting: int, clients: int) -> Backlog:
    backlog = Backlog(2 * waiting, AGE_AFTER_S)
    for n in range(waiting):
        backlog.add(counted_job(n, clients), Counted(n / waiting))
    return backlog


def counted_job(n: int, clients: int) -> Job:
    scattered = n * 7919 % 100_003
    return make_job(
        client=f"c{scattered % clients}",
        priority=get_args(Class)[scattered % 4],
        cost=Counted(1 + scattered % 97),
        deadline=Counted(300 + scattered),
    )


@pytest.mark.parametrize("clients_in", [lambda waiting: 4, lambda waiting: waiting // 2], ids=["few", "many"])
def test_cost_is_logarithmic(clients_in: Callable[[int], int]) -> None:
    """A hundred times as many waiting jobs cost no more than a few times as much: log2 of 100 000 is 1.7 times that of
    1 000, and anything that looks at all jobs would be at a hundred times."""
    dearest: dict[int, dict[str, int]] = {}
    for waiting in (1_000, 100_000):
        clients = clients_in(waiting)
        backlog = crowd(waiting, clients)
        costs: dict[str, list[int]] = {"add": [], "position": [], "take": [], "remove": [], "settle": []}
        for n in range(40):
            extra = counted_job(31 * n, clients)
            costs["add"].append(cost_of(backlog.add, extra, Counted(2 + n))[1])
            costs["position"].append(cost_of(backlog.position, extra)[1])
            taken, cost = cost_of(backlog.take, [INFERENCE], Counted(2))
            assert taken is not None
            costs["take"].append(cost)
            costs["settle"].append(cost_of(backlog.settle, taken, 3.0)[1])
            if extra is not taken:
                costs["remove"].append(cost_of(backlog.remove, extra)[1])
        dearest[waiting] = {name: max(seen) for name, seen in costs.items()}
    for name, small in dearest[1_000].items():
        assert dearest[100_000][name] <= 4 * small, (name, dearest)
        assert dearest[100_000][name] < 5_000, (name, dearest)
