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


class Channel:
    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._consumers: list[Consumer] = []
        self._paused = False

    def attach(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)

    def pause(self) -> None:
        """Start no further job; what runs goes on."""
        self._paused = True

    def put(self, request: Request, size: int, client: ClientKey, delivery: Delivery) -> Job:
        """Queue a request; `dispatch` starts it. Raises what Admission.admit raises."""
        return self.admission.admit(request, size, client, delivery, trio.current_time())

    def dispatch(self) -> None:
        """Give waiting jobs to free slots, best job first, to the least busy model that can take it."""
        if self._paused:
            return
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

    def withdraw(self, job: Job) -> None:
        """Take back a job that is to end: out of the backlog, or off its model at the next step."""
        if job in self.admission.backlog:
            self.admission.backlog.remove(job)
            return
        for consumer in self._consumers:
            if consumer.entry.id == job.model_id:
                consumer.cancel(job)

    def release(self, job: Job) -> None:
        """A session's next turn has the floor."""
        if job in self.admission.backlog:
            self.admission.backlog.release(job)
