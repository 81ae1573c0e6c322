"""Start-time fair queueing: what one client gets while another waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.scheduling import fairness
from granville.scheduling.fairness import FairQueue
from granville.scheduling.job import Job, Lane
from tests.core.jobs import make_job

LANE: Lane = ("type", "inference")
cost_lists = st.lists(st.integers(1, 1000), min_size=1, max_size=30)


def serve(queue: FairQueue, lane: Lane = LANE) -> Job:
    job = queue.head([lane])
    assert job is not None
    queue.take(job)
    return job


def fill(queue: FairQueue, client: str, costs: list[int]) -> None:
    for cost in costs:
        queue.add(make_job(client=client, cost=cost))


@given(st.dictionaries(st.sampled_from("abcd"), cost_lists, min_size=2))
def test_backlogged_clients_are_served_alike(costs_of: dict[str, list[int]]) -> None:
    """In any interval in which both have jobs waiting, what two clients get differs by no more than their two largest
    costs together (theorem 1 of the paper, for equal weights)."""
    queue = FairQueue()
    for client, costs in costs_of.items():
        fill(queue, client, costs)
    left = {client: len(costs) for client, costs in costs_of.items()}
    served = dict.fromkeys(costs_of, 0)
    history = [dict(served)]
    while all(left.values()):
        job = serve(queue)
        served[job.client[1]] += int(job.cost)
        left[job.client[1]] -= 1
        history.append(dict(served))
    for one in costs_of:
        for other in costs_of:
            ahead = [moment[one] - moment[other] for moment in history]
            assert max(ahead) - min(ahead) <= max(costs_of[one]) + max(costs_of[other])


@given(st.dictionaries(st.sampled_from("abcd"), cost_lists, min_size=1))
def test_everything_is_served_once_and_each_client_in_order(costs_of: dict[str, list[int]]) -> None:
    queue = FairQueue()
    jobs = [make_job(client=client, cost=cost) for client, costs in costs_of.items() for cost in costs]
    for job in jobs:
        queue.add(job)
    order = [serve(queue) for _ in jobs]
    assert queue.head([LANE]) is None
    assert sorted(order, key=lambda job: (job.client, job.arrival)) == sorted(jobs, key=lambda j: (j.client, j.arrival))
    for client in costs_of:
        arrivals = [job.arrival for job in order if job.client[1] == client]
        assert arrivals == sorted(arrivals)


def test_a_thousand_jobs_take_turns_with_two() -> None:
    queue = FairQueue()
    fill(queue, "crowd", [10] * 1000)
    for _ in range(100):
        serve(queue)
    fill(queue, "few", [10] * 2)
    assert [serve(queue).client[1] for _ in range(5)] == ["few", "crowd", "few", "crowd", "crowd"]


@given(idle_for=st.integers(1, 50), cost=st.integers(1, 100))
def test_idleness_earns_no_credit(idle_for: int, cost: int) -> None:
    queue = FairQueue()
    fill(queue, "early", [cost])
    fill(queue, "busy", [cost] * (idle_for + 40))
    for _ in range(idle_for + 1):
        serve(queue)
    fill(queue, "early", [cost] * 20)
    first = [serve(queue).client[1] for _ in range(10)]
    assert first.count("early") == 5


def test_a_debt_is_kept_while_a_client_has_no_jobs() -> None:
    """Whoever sends the next job only when the last was taken is not taken for a newcomer each time."""
    queue = FairQueue()
    fill(queue, "steady", [10] * 10)
    fill(queue, "one by one", [40])
    order = []
    for _ in range(10):
        job = serve(queue)
        order.append(job.client[1])
        if order[-1] == "one by one":
            fill(queue, "one by one", [40])
    assert order.count("one by one") == 2


@given(st.lists(st.integers(10, 200), min_size=2, max_size=20), st.data())
def test_service_by_real_cost_is_fair_once_settled(estimates: list[int], data: st.DataObject) -> None:
    """A client whose jobs take more than was estimated is charged for it: with each job settled before the next is
    taken, the bound holds for the real costs."""
    queue = FairQueue()
    real: dict[Job, int] = {}
    for client in "ab":
        for estimate in estimates:
            job = make_job(client=client, cost=estimate)
            real[job] = data.draw(st.integers(estimate, 400))
            queue.add(job)
    served = {"a": 0, "b": 0}
    left = {"a": len(estimates), "b": len(estimates)}
    ahead = [0]
    while all(left.values()):
        job = serve(queue)
        client = job.client[1]
        queue.settle(job.client, real[job] - job.cost)
        served[client] += real[job]
        left[client] -= 1
        ahead.append(served["a"] - served["b"])
    largest = {client: max(cost for job, cost in real.items() if job.client[1] == client) for client in "ab"}
    assert max(ahead) - min(ahead) <= sum(largest.values())


def test_what_was_charged_too_much_is_given_back() -> None:
    queue = FairQueue()
    fill(queue, "a", [1000, 10])
    fill(queue, "b", [10] * 20)
    first = serve(queue)
    assert first.client[1] == "a"
    queue.settle(first.client, 10 - first.cost)
    assert [serve(queue).client[1] for _ in range(3)] == ["b", "a", "b"]


def test_settling_an_idle_account() -> None:
    queue = FairQueue()
    fill(queue, "a", [10])
    fill(queue, "b", [10] * 20)
    first = serve(queue)
    queue.settle(first.client, 35.0)  # 45 in all
    fill(queue, "a", [10])
    # b's jobs start at 0, 10, 20, 30 and 40.
    assert [serve(queue).client[1] for _ in range(6)] == ["b"] * 5 + ["a"]


def test_the_later_lane_waits_its_turn_too() -> None:
    """A client's account is one, whatever models its jobs are bound to."""
    queue = FairQueue()
    bound: Lane = ("model", "m1")
    for _ in range(3):
        queue.add(make_job(client="a", cost=10, model_id="m1"))
        queue.add(make_job(client="a", cost=10))
        queue.add(make_job(client="b", cost=10))
    lanes = [LANE, bound]
    order = []
    for _ in range(6):
        job = queue.head(lanes)
        assert job is not None
        queue.take(job)
        order.append(job.client[1])
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert queue.head([("model", "m2")]) is None


def test_discarding_costs_nothing() -> None:
    queue = FairQueue()
    doomed = make_job(client="a", cost=1000)
    queue.add(doomed)
    queue.discard(doomed)
    fill(queue, "b", [10] * 2)
    fill(queue, "a", [10])
    assert [serve(queue).client[1] for _ in range(3)] == ["b", "a", "b"]


def test_idle_accounts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones with the least on them go first; the largest debts are remembered."""
    monkeypatch.setattr(fairness, "MAX_IDLE_FLOWS", 3)
    queue = FairQueue()
    for n in range(1, 7):
        fill(queue, f"c{n}", [10 * n])
    for _ in range(6):
        serve(queue)
    assert sorted(client for _, client in queue._idle) == ["c4", "c5", "c6"]
    for n in (6, 1, 5, 2):
        fill(queue, f"c{n}", [1])
    assert [serve(queue).client[1] for _ in range(4)] == ["c1", "c2", "c5", "c6"]
