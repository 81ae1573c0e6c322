"""From a request to a job: what is taken in, what is refused and why, and when to come again."""

from __future__ import annotations

from granville.errors import Conflict, NoModel, QueueFull, ShuttingDown, UnknownJob, Unsupported
from granville.scheduling.backlog import Backlog
from granville.scheduling.job import ClientKey, Delivery, Job, expected_cost
from granville.scheduling.memory import Held, MemoryBudget
from granville.scheduling.priority import Priority
from granville.scheduling.roster import ModelEntry, Roster
from granville.scheduling.routing import Router
from granville.scheduling.sessions import Sessions
from granville.wire.messages import Request, same_work

DEFAULT_RETRY_MS = 1000
MIN_RETRY_MS = 10
MAX_RETRY_MS = 60_000
MAX_UNDELIVERED = 10_000
"""Live jobs beside those that wait: with callbacks that are gone, a fast model would pile up answers without end."""
SMOOTHING = 0.2
"""Weight of the newest interval in the exponentially weighted mean between two jobs that leave a busy queue."""


class ServiceRate:
    """How fast the queue is served, measured while it is never empty."""

    def __init__(self) -> None:
        self._interval_s: float | None = None
        self._last_start: float | None = None
        self._started_together = 0
        self._refused_since_start = 0

    def started(self, now: float, still_waiting: int) -> None:
        """A job left the queue. An interval counts only when jobs waited all through it; jobs of a batch, which
        start at the same instant, share the interval up to the next start."""
        if self._last_start is not None and now > self._last_start:
            interval = (now - self._last_start) / self._started_together
            known = self._interval_s
            self._interval_s = interval if known is None else known + SMOOTHING * (interval - known)
        self._started_together = self._started_together + 1 if now == self._last_start else 1
        self._last_start = now if still_waiting else None
        self._refused_since_start = 0

    def was_empty(self) -> None:
        """Nothing waited just now: the time since the last start says nothing about the rate."""
        self._last_start = None

    @property
    def per_second(self) -> float | None:
        return None if self._interval_s is None else 1 / self._interval_s

    def retry_after_ms(self, now: float) -> int:
        """When a place will be free for one more refused request: those refused before it come first."""
        self._refused_since_start += 1
        if self._interval_s is None:
            return DEFAULT_RETRY_MS
        overdue = now - self._last_start if self._last_start is not None else 0.0
        interval_ms = 1000 * max(self._interval_s, overdue)
        return int(min(max(interval_ms * self._refused_since_start, MIN_RETRY_MS), MAX_RETRY_MS))

    def wait_ms(self, places: int) -> int | None:
        """How long `places` jobs take to leave the queue, None before anything was measured."""
        return None if self._interval_s is None else int(1000 * self._interval_s * places)


class Admission:
    """The live jobs by id, from acceptance until their terminal message is delivered."""

    def __init__(
        self, backlog: Backlog, roster: Roster, sessions: Sessions, timeout_s: float, *, router: Router | None = None,
        held: Held | None = None,
    ) -> None:  # fmt: skip
        self.backlog = backlog
        self.roster = roster
        self.sessions = sessions
        self.timeout_s = timeout_s
        self.router = router or Router(roster)
        self.held = held or Held(MemoryBudget(None, 0))
        self.rate = ServiceRate()
        self.closed = False
        self._jobs: dict[str, Job] = {}
        self._sizes: dict[str, int] = {}
        """Bytes of each live job's request, and of the sound of its answer."""
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def jobs(self) -> list[Job]:
        return list(self._jobs.values())

    def find(self, id: str) -> Job:
        job = self._jobs.get(id)
        if job is None:
            raise UnknownJob(f"id: no job {id!r}; it never came, has been delivered, or was cancelled")
        return job

    def same(self, request: Request) -> Job | None:
        """The live job that this request repeats. Raises Conflict when its id belongs to another request."""
        job = self._jobs.get(request.id)
        if job is not None and not same_work(job.request, request):
            raise Conflict(f"id: {request.id!r} is in use by another request; choose a fresh id")
        return job

    def admit(
        self, request: Request, size: int, client: ClientKey, delivery: Delivery, now: float, file_bytes: int = 0
    ) -> Job:
        """Queue a new request of `size` bytes, and the `file_bytes` of a file that it names. Raises Conflict,
        ShuttingDown, UnknownModel, NoModel, Unsupported or
        QueueFull; after any of these nothing has changed."""
        if request.id in self._jobs:
            raise Conflict(f"id: {request.id!r} is live already")
        if self.closed:
            raise ShuttingDown("the daemon is shutting down; send this again when it is back")
        self.roster.check(request)
        if self.backlog.full:
            raise QueueFull(
                f"the queue is full: it holds {self.backlog.limit}", retry_after_ms=self.rate.retry_after_ms(now)
            )
        if len(self._jobs) - len(self.backlog) >= MAX_UNDELIVERED:
            raise QueueFull(
                f"{MAX_UNDELIVERED} answers wait for their callbacks to take them", retry_after_ms=MAX_RETRY_MS
            )
        if not self.held.fits(size):
            raise QueueFull(
                f"the requests that are held leave no memory for one more of {size} bytes",
                retry_after_ms=self.rate.retry_after_ms(now),
            )
        timeout_s = self.timeout_s if request.timeout_ms is None else request.timeout_ms / 1000
        self._arrivals += 1
        job = Job(
            request=request,
            client=client,
            arrival=self._arrivals,
            accepted_at=now,
            deadline=now + timeout_s,
            cost=expected_cost(request, size, file_bytes),
            priority=Priority.of(request.priority),
            delivery=delivery,
            bound_to=None if self.sessions.at_work(request.session_id) else self._binding(request),
        )
        if not len(self.backlog):
            self.rate.was_empty()
        before = self.sessions.arrive(job)
        self.backlog.add(job, now, held=bool(before))
        for earlier in before:
            self.backlog.lend(earlier, job.urgency)
        self._jobs[job.id] = job
        self._sizes[job.id] = size
        self.held.take(size)
        return job

    def reclass(self, job: Job, priority: Priority, now: float) -> None:
        """Put a waiting job into the class that it was ranked in; earlier turns of its session come along."""
        self.backlog.reclass(job, priority, now)
        for earlier in self.sessions.before(job):
            self.backlog.lend(earlier, job.urgency)

    def follow_session(self, job: Job) -> None:
        """A waiting turn, bound to no model so far, has its session's floor. Raises what Roster.able raises."""
        if job in self.backlog:
            self.backlog.rebind(job, self._binding(job.request))

    def _binding(self, request: Request) -> str | None:
        """The model that holds the request's session, while it is there, or else what the router chooses."""
        known = self.sessions.known(request.session_id)
        if request.model_id is None and known is not None and known.model_id and known.model_id in self.roster:
            holder = self.roster[known.model_id]
            if holder in self.roster.able(request):
                return holder.id
        return self.router.choose(request)

    def grow(self, job: Job, more_bytes: int) -> None:
        """A live job's answer has so many bytes more, or, when it begins anew, less."""
        if self._jobs.get(job.id) is job:
            self.held.give_back(self._sizes[job.id])
            self._sizes[job.id] += more_bytes
            self.held.take(self._sizes[job.id])

    def likely(self, request: Request, feature: str) -> ModelEntry:
        """The model that would run such a request if it came now. Raises what Roster.able raises, Unsupported where
        none has the feature, NoModel where it is not ready."""
        able = [entry for entry in self.roster.able(request) if feature in entry.features or not entry.slots]
        if not able:
            raise Unsupported(f"op: the model cannot keep anything {feature}")
        known = self.sessions.known(request.session_id)
        holder = [entry for entry in able if request.model_id is None and known and entry.id == known.model_id]
        ready = [entry for entry in holder or able if entry.state == "ready"]
        if not ready:
            raise NoModel("the model is being loaded; ask again when it is ready")
        return holder[0] if holder else self.router.likely(request, ready)

    def forget(self, job: Job) -> None:
        """The job's terminal message has been delivered, or its reader is gone: its id is free again."""
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
            self.held.give_back(self._sizes.pop(job.id))
