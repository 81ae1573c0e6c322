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
    held: int
    """For how many reasons: its session's earlier turn, its ranking."""
    returned: bool = False
    """It ran and was put back: the bound on waiting jobs does not count it."""


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
        self._eligible: dict[tuple[Lane, int], SortedDict] = {}
        """Jobs that could run now, by lane and by the class that is theirs without their age; in order of arrival."""
        self._counts = dict.fromkeys(Priority, 0)
        self._returned = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job: Job) -> bool:
        return job in self._places

    @property
    def full(self) -> bool:
        return len(self._places) - self._returned >= self.limit

    def add(self, job: Job, now: float, *, held: int = 0) -> None:
        """Queue a job; one that is held, for so many reasons, waits and counts, but is nobody's turn until it is
        released as often. Raises QueueFull."""
        if self.full:
            raise QueueFull(f"the queue is full: it holds {self.limit}")
        self._enter(job, _Place(job.urgency, now, held))

    def put_back(self, job: Job, *, held: int = 0) -> None:
        """Queue a job again that was taken and lost its slot: in its own class, as old as it is, with its client's
        account as before it ran. It does not count against the bound: it was accepted already."""
        self.settle(job, 0.0)
        job.charged_in = None
        self._returned += 1
        self._enter(job, _Place(job.urgency, job.accepted_at, held, returned=True))

    def rebind(self, job: Job, model_id: str | None) -> None:
        """Bind a waiting job to a model, or to none; it keeps its age and its place in the count."""
        place = self._places[job]
        self._step_out(job, place)
        self._count_lane(job.lane, -1)
        job.bound_to = model_id
        self._count_lane(job.lane, 1)
        self._stand(job, place)

    def hold(self, job: Job) -> None:
        """One reason more for a waiting job to be nobody's turn."""
        place = self._places[job]
        self._step_out(job, place)
        place.held += 1
        self._stand(job, place)

    def release(self, job: Job) -> None:
        place = self._places[job]
        self._step_out(job, place)
        place.held -= 1
        self._stand(job, place)

    def reclass(self, job: Job, priority: Priority, now: float) -> None:
        """Make a waiting job one of another class, where its age counts from now on. The same class changes nothing."""
        if priority == job.priority:
            return
        place = self._places[job]
        self._step_out(job, place)
        self._counts[job.priority] -= 1
        job.priority = priority
        place.level, place.since = job.urgency, now
        self._counts[priority] += 1
        self._stand(job, place)

    def lend(self, job: Job, priority: Priority) -> None:
        """Let a job, waiting or not, count as one of a higher class, because one of that class waits for its end."""
        place = self._places.get(job)
        if place is None or priority >= job.urgency:
            job.lent = min(job.lent, priority)
            return
        self._step_out(job, place)
        job.lent = min(job.lent, priority)
        place.level = min(place.level, priority)
        self._stand(job, place)

    def take(self, lanes: Iterable[Lane], now: float) -> Job | None:
        """Remove and return the job that is next for a model that serves these lanes."""
        self._age(now)
        wanted = tuple(lanes)
        for queue in self._queues.values():
            job = queue.head(wanted)
            if job is not None:
                self._take(job)
                return job
        return None

    def take_more_urgent(self, lanes: Iterable[Lane], than: Priority) -> Job | None:
        """Remove and return the job of the highest class that came first, if that class is higher than `than`. A
        class by age does not count."""
        wanted = tuple(lanes)
        for urgency in range(than):
            firsts = [jobs.peekitem(0) for lane in wanted if (jobs := self._eligible.get((lane, urgency)))]
            if firsts:
                job: Job = min(firsts)[1]
                self._take(job)
                return job
        return None

    def remove(self, job: Job) -> None:
        """Take out a waiting job that will not run."""
        self._step_out(job, self._places[job])
        self._forget(job)

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

    def _enter(self, job: Job, place: _Place) -> None:
        self._places[job] = place
        self._counts[job.priority] += 1
        self._count_lane(job.lane, 1)
        self._stand(job, place)

    def _take(self, job: Job) -> None:
        place = self._places[job]
        self._queues[place.level].take(job)
        job.charged_in = place.level
        self._unlist(job, place)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        place = self._places.pop(job)
        self._returned -= place.returned
        self._counts[job.priority] -= 1
        self._count_lane(job.lane, -1)

    def _stand(self, job: Job, place: _Place) -> None:
        self._order[place.level][place.since, job.arrival] = job
        if not place.held:
            self._queues[place.level].add(job)
            self._eligible.setdefault((job.lane, job.urgency), SortedDict())[job.arrival] = job

    def _step_out(self, job: Job, place: _Place) -> None:
        """Before anything changes that its place in the order depends on."""
        if not place.held:
            self._queues[place.level].discard(job)
        self._unlist(job, place)

    def _unlist(self, job: Job, place: _Place) -> None:
        del self._order[place.level][place.since, job.arrival]
        if not place.held:
            alike = self._eligible[job.lane, job.urgency]
            del alike[job.arrival]
            if not alike:
                del self._eligible[job.lane, job.urgency]

    def _count_lane(self, lane: Lane, by: int) -> None:
        self._lanes[lane] += by
        if not self._lanes[lane]:
            del self._lanes[lane]

    def _age(self, now: float) -> None:
        """From the lowest class up, so that a job which has waited long enough for two classes rises by two."""
        for level in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
            order = self._order[level]
            while order and order.peekitem(0)[0][0] + self.age_after_s <= now:
                job = order.peekitem(0)[1]
                place = self._places[job]
                self._step_out(job, place)
                place.level, place.since = level.raised(), place.since + self.age_after_s
                self._stand(job, place)
