"""The waiting jobs: bounded, ordered by class, fair inside a class, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sortedcontainers import SortedDict

from granville.errors import QueueFull
from granville.scheduling.fairness import FairQueue
from granville.scheduling.job import Job, Lane
from granville.scheduling.priority import Priority


@dataclass(eq=False, slots=True)
class _Place:
    level: Priority
    """The class that the job is ordered in: its own, or a higher one by ageing."""
    since: float
    """When it came into this class."""
    held: bool


class Backlog:
    """Adding, taking, removing and asking for a position cost O(log n) for n waiting jobs.

    Jobs of a higher class go first. A job that has waited `age_after_s` in a class is ordered in the one above, and
    so on up to critical, where the fair order and its early deadline bring it to its turn. `take` moves the jobs whose
    time has come, at most three times in a job's life, however long nobody took anything.
    """

    def __init__(self, limit: int, age_after_s: float) -> None:
        self.limit = limit
        self.age_after_s = age_after_s
        self._places: dict[Job, _Place] = {}
        self._queues = {level: FairQueue() for level in Priority}
        self._order: dict[Priority, SortedDict] = {level: SortedDict() for level in Priority}
        self._lanes: Counter[Lane] = Counter()
        self._counts = dict.fromkeys(Priority, 0)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job: Job) -> bool:
        return job in self._places

    @property
    def full(self) -> bool:
        return len(self._places) >= self.limit

    def add(self, job: Job, now: float, *, held: bool = False) -> None:
        """Queue a job; a held one waits, and counts, but is nobody's turn until it is released. Raises QueueFull."""
        if self.full:
            raise QueueFull(f"the queue is full: it holds {self.limit}")
        self._places[job] = _Place(job.priority, now, held)
        self._counts[job.priority] += 1
        self._lanes[job.lane] += 1
        self._order[job.priority][now, job.arrival] = job
        if not held:
            self._queues[job.priority].add(job)

    def release(self, job: Job) -> None:
        place = self._places[job]
        place.held = False
        self._queues[place.level].add(job)

    def take(self, lanes: Iterable[Lane], now: float) -> Job | None:
        """Remove and return the job that is next for a model that serves these lanes."""
        self._age(now)
        wanted = tuple(lanes)
        for level, queue in self._queues.items():
            job = queue.head(wanted)
            if job is not None:
                queue.take(job)
                job.charged_in = level
                self._forget(job, level)
                return job
        return None

    def remove(self, job: Job) -> None:
        """Take out a waiting job that will not run."""
        place = self._places[job]
        if not place.held:
            self._queues[place.level].discard(job)
        self._forget(job, place.level)

    def settle(self, job: Job, actual_cost: float) -> None:
        """Charge the client of a job that was taken what the job really took, where it was charged the estimate."""
        if job.charged_in is None:
            raise ValueError("only a job that was taken has been charged")
        self._queues[job.charged_in].settle(job.client, actual_cost - job.cost)

    def position(self, job: Job) -> int:
        """How many jobs stand before this one, in higher classes or longer in its own."""
        place = self._places[job]
        above = sum(len(self._order[level]) for level in Priority if level < place.level)
        return above + int(self._order[place.level].index((place.since, job.arrival)))

    def counts(self) -> dict[str, int]:
        """Waiting jobs by the class that each was given."""
        return {level.wire: count for level, count in self._counts.items()}

    def waiting_for(self, lanes: Iterable[Lane]) -> int:
        """Waiting jobs that a model which serves these lanes could take."""
        return sum(self._lanes[lane] for lane in lanes)

    def oldest_accepted_at(self) -> float | None:
        return min((job.accepted_at for job in self._places), default=None)

    def waiting(self) -> list[Job]:
        return list(self._places)

    def _forget(self, job: Job, level: Priority) -> None:
        place = self._places.pop(job)
        self._counts[job.priority] -= 1
        self._lanes[job.lane] -= 1
        if not self._lanes[job.lane]:
            del self._lanes[job.lane]
        del self._order[level][place.since, job.arrival]

    def _age(self, now: float) -> None:
        """From the lowest class up, so that a job which has waited long enough for two classes rises by two."""
        for level in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
            order = self._order[level]
            while order and order.peekitem(0)[0][0] + self.age_after_s <= now:
                (since, arrival), job = order.popitem(0)
                place = self._places[job]
                if not place.held:
                    self._queues[level].discard(job)
                place.level, place.since = level.raised(), since + self.age_after_s
                self._order[place.level][place.since, arrival] = job
                if not place.held:
                    self._queues[place.level].add(job)
