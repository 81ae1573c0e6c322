"""The bounded channel between whoever accepts jobs and the models: a synchronous function decides who gets what.

`put` never waits: a full backlog refuses (429) instead. A model takes the best job the moment it has a free slot,
so nothing is bound to a model earlier than it must be.
"""

from __future__ import annotations

from typing import Protocol

import trio

from granville.scheduling.admission import Admission
from granville.scheduling.job import ClientKey, Delivery, Job
from granville.scheduling.roster import ModelEntry
from granville.wire.messages import Request


class Consumer(Protocol):
    """A model's side of the channel."""

    @property
    def entry(self) -> ModelEntry: ...

    def start(self, job: Job) -> None: ...

    def cancel(self, job: Job) -> None: ...

    def victim(self) -> Job | None:
        """The running job that would be parked first, if one may be."""

    def park(self, job: Job) -> None:
        """Take it off its slot, which the next job that is started gets."""


class Channel:
    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._consumers: list[Consumer] = []
        self._paused = False

    @property
    def paused(self) -> bool:
        return self._paused

    def attach(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)

    def detach(self, consumer: Consumer) -> None:
        self._consumers.remove(consumer)

    def pause(self) -> None:
        """Whoever calls this has ended all that has not run: only parked jobs start again."""
        self._paused = True

    def put(self, request: Request, size: int, client: ClientKey, delivery: Delivery, file_bytes: int = 0) -> Job:
        """Queue a request; `dispatch` starts it. Raises what Admission.admit raises."""
        return self.admission.admit(request, size, client, delivery, trio.current_time(), file_bytes)

    def dispatch(self) -> None:
        """Give waiting jobs to free slots, best job first, to the least busy model that can take it; then slots of
        running jobs to waiting ones of a higher class."""
        now = trio.current_time()
        backlog, rate = self.admission.backlog, self.admission.rate
        idle = [consumer for consumer in self._consumers if consumer.entry.free > 0]
        while idle and len(backlog):
            consumer = max(idle, key=lambda consumer: consumer.entry.free)
            job = backlog.take(consumer.entry.lanes, now)
            if job is not None:
                rate.started(now, len(backlog))
                consumer.start(job)
            if job is None or consumer.entry.free <= 0:
                idle.remove(consumer)
        if len(backlog):
            self._preempt(now)

    def _preempt(self, now: float) -> None:
        """Give waiting jobs of a strictly higher class the slots of running ones, lowest class first."""
        backlog, rate = self.admission.backlog, self.admission.rate
        victims = [(consumer, victim) for consumer in self._consumers if (victim := consumer.victim()) is not None]
        while victims:
            consumer, victim = max(victims, key=lambda pair: pair[1].urgency)
            job = backlog.take_more_urgent(consumer.entry.lanes, victim.urgency)
            victims.remove((consumer, victim))
            if job is not None:
                consumer.park(victim)
                rate.started(now, len(backlog))
                consumer.start(job)
                next_victim = consumer.victim()
                if next_victim is not None:
                    victims.append((consumer, next_victim))

    def withdraw(self, job: Job) -> None:
        """Take back a job that is to end: out of the backlog, off its model at the next step, or from where it is
        parked."""
        if job in self.admission.backlog:
            self.admission.backlog.remove(job)
        for consumer in self._consumers:
            if consumer.entry.id == job.model_id:
                consumer.cancel(job)

    def release(self, job: Job) -> None:
        """A session's next turn has the floor."""
        if job in self.admission.backlog:
            self.admission.backlog.release(job)
