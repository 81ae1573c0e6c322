"""Start-time fair queueing between clients (Goyal, Vin and Cheng, SIGCOMM 1996), over several lanes at once.

Each client has a virtual finish time: what it was served so far, in tokens. Its next job starts at the later of
that and the queue's virtual time, which is the start of the job served last; the smallest start goes first. So a
client that was idle gets its turn at once but no credit for the past, and one with a thousand jobs waiting takes
turns with one that has two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from granville.scheduling.job import ClientKey, Job, Lane

MAX_IDLE_FLOWS = 4096
"""Clients without waiting jobs whose account is still ahead of the queue's time; the nearest to it go first."""


@dataclass(eq=False, slots=True)
class _Flow:
    """One client: its account, and its waiting jobs in each lane by (deadline, arrival)."""

    client: ClientKey
    start: float
    turn: int
    """Breaks ties between equal starts: whoever has waited longer for its turn."""
    lanes: dict[Lane, SortedList] = field(default_factory=dict)


class FairQueue:
    """Jobs of one class. `head` and `take` cost O(log n) for n waiting jobs, times the number of lanes asked for."""

    def __init__(self) -> None:
        self._virtual_time = 0.0
        self._turns = 0
        self._flows: dict[ClientKey, _Flow] = {}
        self._idle: dict[ClientKey, float] = {}
        self._idle_order: SortedList = SortedList()
        self._lanes: dict[Lane, SortedList] = {}

    def add(self, job: Job) -> None:
        flow = self._flows.get(job.client)
        if flow is None:
            start = max(self._virtual_time, self._forget_idle(job.client))
            flow = self._flows[job.client] = _Flow(job.client, start, self._next_turn())
        jobs = flow.lanes.get(job.lane)
        if jobs is None:
            jobs = flow.lanes[job.lane] = SortedList()
            self._lane(job.lane).add((flow.start, flow.turn, flow.client))
        jobs.add((job.deadline, job.arrival, job))

    def head(self, lanes: Iterable[Lane]) -> Job | None:
        """The job whose turn it is among these lanes."""
        heads = [(*order[0], lane) for lane in lanes if (order := self._lanes.get(lane))]
        if not heads:
            return None
        start, turn, client, _ = min(heads)
        flow = self._flows[client]
        tied = [lane for s, t, _, lane in heads if (s, t) == (start, turn)]
        job: Job = min(flow.lanes[lane][0] for lane in tied)[2]
        return job

    def take(self, job: Job) -> None:
        """Remove a job that now runs, and charge its client for it."""
        flow = self._flows[job.client]
        self._virtual_time = max(self._virtual_time, flow.start)
        self._leave(flow, job)
        self._advance(flow, job.cost)
        while self._idle_order and self._idle_order[0][0] <= self._virtual_time:
            self._forget_idle(self._idle_order[0][1])

    def discard(self, job: Job) -> None:
        """Remove a job that will not run."""
        flow = self._flows[job.client]
        self._leave(flow, job)
        if not flow.lanes:
            self._advance(flow, 0.0)

    def settle(self, client: ClientKey, difference: float) -> None:
        """Correct a client's account once a job's real cost is known: `difference` tokens more than was charged."""
        flow = self._flows.get(client)
        if flow is not None:
            self._advance(flow, difference)
        elif client in self._idle:
            self._keep_idle(client, self._forget_idle(client) + difference)

    def _advance(self, flow: _Flow, tokens: float) -> None:
        """Move a client's start; one without jobs is kept by its account alone while that is ahead of the time."""
        for lane in flow.lanes:
            self._remove_order(lane, flow)
        flow.start = flow.start + tokens
        if not flow.lanes:
            del self._flows[flow.client]
            self._keep_idle(flow.client, flow.start)
            return
        flow.start = max(flow.start, self._virtual_time)
        flow.turn = self._next_turn()
        for lane in flow.lanes:
            self._lane(lane).add((flow.start, flow.turn, flow.client))

    def _leave(self, flow: _Flow, job: Job) -> None:
        jobs = flow.lanes[job.lane]
        jobs.remove((job.deadline, job.arrival, job))
        if not jobs:
            del flow.lanes[job.lane]
            self._remove_order(job.lane, flow)

    def _lane(self, lane: Lane) -> SortedList:
        return self._lanes.setdefault(lane, SortedList())

    def _remove_order(self, lane: Lane, flow: _Flow) -> None:
        order = self._lanes[lane]
        order.remove((flow.start, flow.turn, flow.client))
        if not order:
            del self._lanes[lane]

    def _keep_idle(self, client: ClientKey, finish: float) -> None:
        if finish <= self._virtual_time:
            return
        self._idle[client] = finish
        self._idle_order.add((finish, client))
        if len(self._idle) > MAX_IDLE_FLOWS:
            self._forget_idle(self._idle_order[0][1])

    def _forget_idle(self, client: ClientKey) -> float:
        """Drop an idle client's account and return it; minus infinity for one that has none."""
        finish = self._idle.pop(client, None)
        if finish is None:
            return float("-inf")
        self._idle_order.remove((finish, client))
        return finish

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns
