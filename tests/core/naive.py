"""The backlog as it would be written if nothing had to be fast: one list, searched and sorted anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field

from granville.scheduling.job import ClientKey, Job, Lane
from granville.scheduling.priority import Priority


@dataclass(eq=False)
class Waiting:
    job: Job
    level: Priority
    since: float
    held: int
    returned: bool = False


@dataclass
class Ledger:
    """Start-time fair queueing in one class: when each client's next job starts, in tokens of virtual time."""

    time: float = 0.0
    starts: dict[ClientKey, float] = field(default_factory=dict)
    """Of clients with jobs: where they stand. Of others: what is still on their account."""
    line: list[ClientKey] = field(default_factory=list)
    """Clients with jobs. Of two that start at the same time, the one further ahead here goes first."""

    def join(self, client: ClientKey) -> None:
        if client not in self.line:
            self.starts[client] = max(self.time, self.starts.get(client, self.time))
            self.line.append(client)

    def move(self, client: ClientKey, tokens: float, *, stays: bool) -> None:
        """Charge a client, or give back; then it stands last among equals, or leaves."""
        if client not in self.starts:
            return
        self.starts[client] += tokens
        if client in self.line:
            self.line.remove(client)
            if stays:
                self.starts[client] = max(self.starts[client], self.time)
                self.line.append(client)
        for gone in [c for c, start in self.starts.items() if c not in self.line and start <= self.time]:
            del self.starts[gone]


class NaiveBacklog:
    def __init__(self, limit: int, age_after_s: float) -> None:
        self.limit = limit
        self.age_after_s = age_after_s
        self.waiting: list[Waiting] = []
        self.ledgers = {level: Ledger() for level in Priority}

    def find(self, job: Job) -> Waiting:
        (place,) = [place for place in self.waiting if place.job is job]
        return place

    def eligible(self, level: Priority, client: ClientKey | None = None) -> list[Waiting]:
        return [
            place
            for place in self.waiting
            if place.level == level and not place.held and client in (None, place.job.client)
        ]

    def add(self, job: Job, now: float, *, held: int) -> bool:
        if self.counted >= self.limit:
            return False
        self._stand(Waiting(job, job.urgency, now, held))
        return True

    @property
    def counted(self) -> int:
        return sum(not place.returned for place in self.waiting)

    def put_back(self, job: Job, level: Priority, *, held: int) -> None:
        self.settle(job, level, 0)
        self._stand(Waiting(job, job.urgency, job.accepted_at, held, returned=True))

    def rebind(self, job: Job, model_id: str | None) -> None:
        place = self.find(job)
        self._drop(place)
        job.bound_to = model_id
        self._stand(place)

    def hold(self, job: Job) -> None:
        place = self.find(job)
        self._drop(place)
        place.held += 1
        self._stand(place)

    def release(self, job: Job) -> None:
        place = self.find(job)
        place.held -= 1
        if not place.held:
            self.ledgers[place.level].join(job.client)

    def reclass(self, job: Job, priority: Priority, now: float) -> None:
        place = self.find(job)
        if priority == job.priority:
            return
        self._drop(place)
        job.priority = priority
        place.level, place.since = job.urgency, now
        self._stand(place)

    def lend(self, job: Job, priority: Priority) -> None:
        """A job may wait or run. Only one that rises leaves its place."""
        rises = priority < job.urgency
        job.lent = min(job.lent, priority)
        for place in [place for place in self.waiting if place.job is job and rises]:
            self._drop(place)
            place.level = min(place.level, priority)
            self._stand(place)

    def take(self, lanes: tuple[Lane, ...], now: float) -> Job | None:
        self.age(now)
        for level in Priority:
            ledger = self.ledgers[level]
            able = [place.job for place in self.eligible(level) if place.job.lane in lanes]
            if not able:
                continue
            clients = [client for client in ledger.line if any(job.client == client for job in able)]
            client = min(clients, key=lambda c: ledger.starts[c])  # the first of equals
            job = min((job for job in able if job.client == client), key=lambda job: (job.deadline, job.arrival))
            return self._take(self.find(job))
        return None

    def take_more_urgent(self, lanes: tuple[Lane, ...], than: Priority) -> Job | None:
        able = [place for place in self.waiting if not place.held and place.job.lane in lanes]
        urgent = [place for place in able if place.job.urgency < than]
        if not urgent:
            return None
        return self._take(min(urgent, key=lambda place: (place.job.urgency, place.job.arrival)))

    def remove(self, job: Job) -> None:
        self._drop(self.find(job))

    def settle(self, job: Job, level: Priority, actual_cost: float) -> None:
        self.ledgers[level].move(job.client, actual_cost - job.cost, stays=True)

    def position(self, job: Job) -> int:
        order = sorted(self.waiting, key=lambda place: (place.level, place.since, place.job.arrival))
        return order.index(self.find(job))

    def age(self, now: float) -> None:
        for level in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
            due = [p for p in self.waiting if p.level == level and p.since + self.age_after_s <= now]
            for place in sorted(due, key=lambda place: (place.since, place.job.arrival)):
                self._drop(place)
                place.level, place.since = level.raised(), place.since + self.age_after_s
                self._stand(place)

    def _take(self, place: Waiting) -> Job:
        ledger, client = self.ledgers[place.level], place.job.client
        self.waiting.remove(place)
        ledger.time = max(ledger.time, ledger.starts[client])
        ledger.move(client, place.job.cost, stays=bool(self.eligible(place.level, client)))
        return place.job

    def _stand(self, place: Waiting) -> None:
        self.waiting.append(place)
        if not place.held:
            self.ledgers[place.level].join(place.job.client)

    def _drop(self, place: Waiting) -> None:
        self.waiting.remove(place)
        if not place.held and not self.eligible(place.level, place.job.client):
            self.ledgers[place.level].move(place.job.client, 0.0, stays=False)
