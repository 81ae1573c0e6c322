"""What the kernel does, without how it waits: every operation here is synchronous and returns at once.

Connections bring requests and control operations to the desk, models bring tokens and ends, delivery tasks bring
deadlines. The desk owns the job table and decides each job's one terminal message.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from granville import __version__
from granville.config import ServeConfig
from granville.doors.outbox import Cork
from granville.errors import Cancelled, DeadlineExceeded, GranvilleError, NoModel, ShuttingDown
from granville.nursery.channel import Channel
from granville.nursery.inference import Inference
from granville.nursery.ranking import Ranking
from granville.nursery.rescue import Rescue
from granville.nursery.warming import Warming
from granville.scheduling.admission import Admission
from granville.scheduling.backlog import Backlog
from granville.scheduling.job import ClientKey, Delivery, Job, estimated_cost
from granville.scheduling.memory import KEEPS_STATES, Held, MemoryBudget, share
from granville.scheduling.roster import ModelEntry, Roster
from granville.scheduling.routing import Router
from granville.scheduling.sessions import MemoryTranscripts, Sessions, Transcripts, Turn
from granville.wire.messages import Request, Result
from granville.wire.wav import Sound

if TYPE_CHECKING:
    from granville.nursery.pool import Pool

log = logging.getLogger(__name__)


JOB_COUNTERS = ("accepted", "finished", "failed", "cancelled", "expired", "rejected", "preemptions")


@dataclass(slots=True)
class Counters:
    """Since the daemon started."""

    accepted: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    rejected: int = 0
    preemptions: int = 0
    """How often a running job was parked for a more urgent one."""
    delivered: int = 0
    """Terminal messages to callbacks; and those given up."""
    undelivered: int = 0
    connections: int = 0
    """Open now."""
    senders: int = 0
    """Callback connections open now."""
    unknown_fields: int = 0


class Desk:
    def __init__(self, config: ServeConfig, roster: Roster, transcripts: Transcripts | None = None) -> None:
        self.config = config
        self.roster = roster
        self.sessions = Sessions(MemoryTranscripts(config.max_sessions) if transcripts is None else transcripts)
        self.backlog = Backlog(config.queue_size, config.age_after_s)
        self.budget = MemoryBudget(config.memory_bytes, config.kv_ram_bytes)
        self.admission = Admission(
            self.backlog,
            roster,
            self.sessions,
            config.timeout_s,
            router=Router(roster, config.strategy),
            held=Held(self.budget),
        )
        self.channel = Channel(self.admission)
        self.cork = Cork()
        self.counters = Counters()
        self.models: list[Inference] = []
        self.rescue = Rescue(self)
        self.ranking = Ranking(self)
        self.warming = Warming(self)
        self.pool: Pool | None = None
        """Set by the pool itself, which lives in the kernel's tree."""
        self.stop_requested = trio.Event()
        self.all_ended = trio.Event()
        """Set once the daemon is closed for new work and every job has its terminal message."""
        self.drained = trio.Event()
        """Set once, after that, the last of them has been delivered."""
        self.grace = trio.CancelScope()
        """How long the kernel waits for `all_ended`; `stop` sets its deadline."""
        self._undecided = 0
        self._started_at = trio.current_time()

    def accept(self, request: Request, size: int, client: ClientKey, delivery: Delivery, file_bytes: int = 0) -> Job:
        """Make a new request of `size` bytes, and the `file_bytes` of a file that it names, a job; the caller sends the
        ACK and then lets the channel dispatch.
        Raises the GranvilleError that the client is to be told."""
        job = self.channel.put(request, size, client, delivery, file_bytes)
        self.counters.accepted += 1
        self._undecided += 1
        self._fit_caches()
        self.ranking.consider(job)
        return job

    def token(self, job: Job, text: str, token_ids: tuple[int, ...]) -> None:
        """A piece of a running job's answer."""
        job.token_ids += token_ids
        if text:
            job.text.append(text)
            job.delivery.delta(text)

    def sound(self, job: Job, pcm: bytes, sample_rate: int) -> None:
        """A piece of a running job's answer that is spoken."""
        if job.sound is None:
            job.sound = Sound()
        try:
            piece = job.sound.add(pcm, sample_rate)
        except GranvilleError as error:
            self.end(job, error)
            return
        self.admission.grow(job, len(pcm))
        job.delivery.delta(piece)

    def max_message_bytes(self) -> int:
        """Of a request that comes now."""
        hears = any(entry.type == "stt" and entry.serves for entry in self.roster)
        return self.config.max_sound_request_bytes if hears else self.config.max_request_bytes

    def end(self, job: Job, outcome: Result | GranvilleError) -> None:
        """Decide a job's terminal message, unless that has been done, and free what the job holds."""
        was_running = job.state == "running"
        if not job.decide(outcome):
            return
        self._undecided -= 1
        speech = job.request.model_type in ("stt", "tts")  # the length of its sound was its cost, tokens say nothing
        if isinstance(outcome, Result):
            self.counters.finished += 1
            usage = outcome.usage
            if not speech:
                self.backlog.settle(job, usage.prompt_tokens + usage.completion_tokens)
        else:
            self._count(outcome)
            self.channel.withdraw(job)
            if was_running and not speech:
                written = sum(map(len, job.text))
                self.backlog.settle(job, job.cost - job.request.max_tokens + estimated_cost(written, 0))
        answer, dropped_turns = None, 0
        if isinstance(outcome, Result):
            answer = Turn("assistant", outcome.spoken, tuple(job.token_ids))
            dropped_turns = outcome.usage.dropped_turns or 0
        next_turn = self.sessions.leave(job, answer, dropped_turns)
        if next_turn is not None:
            self._give_floor(next_turn)
        self.warming.turn_ended(job)
        self.rescue.ended(job)
        self._note_progress()

    def _give_floor(self, job: Job) -> None:
        """Its session's next turn may run, unless no model is left that could take it."""
        try:
            self.admission.follow_session(job)
        except GranvilleError as error:
            self.end(job, NoModel(error.message))
            return
        self.channel.release(job)
        self.channel.dispatch()

    def put_back(self, job: Job) -> None:
        """A running job has been parked: it waits for a slot of the model that has its state."""
        job.state = "parked"
        job.parks += 1
        job.bound_to = job.model_id
        self.counters.preemptions += 1
        self.backlog.put_back(job)

    def cache_share(self) -> int:
        """How much of cached and parked states each model that keeps any may have in memory now."""
        keepers = sum(entry.type in KEEPS_STATES for entry in self.roster)
        return share(self.budget.cache_allowance(self.admission.held.total_bytes), keepers)

    def may_park(self, model: Inference) -> bool:
        """Whether memory has room for the state of one more parked job."""
        return self.budget.limit_bytes is None or model.parked_bytes() < self.cache_share()

    def forget(self, job: Job) -> None:
        """A job's terminal message has reached its reader, or never will."""
        self.admission.forget(job)
        self._fit_caches()
        self._note_progress()

    def abandon(self, job: Job) -> None:
        """The client that was to read the answer on its own connection went away."""
        self.end(job, Cancelled("the client went away"))
        self.forget(job)

    def expire(self, job: Job) -> None:
        """The job's deadline, or its end: no more than a look when it has ended in time."""
        if job.outcome is not None:
            return
        waited = trio.current_time() - job.accepted_at
        self.end(job, DeadlineExceeded(f"the deadline passed after {waited:.1f} s, while the job was {job.state}"))

    def cancel(self, id: str) -> dict[str, Any]:
        job = self.admission.find(id)
        if job.outcome is not None:
            return {"id": id, "state": "finished"}
        self.end(job, Cancelled("cancelled by request"))
        return {"id": id, "state": "cancelled"}

    def close(self, *, finish_waiting: bool) -> None:
        """Take no new work. What waits is finished too, or ends now with 503."""
        self.admission.closed = True
        if not finish_waiting:
            self.channel.pause()
            waiting = [job for job in self.backlog.waiting() if job.state != "parked"]
            for job in waiting:  # all of them first: the end of one may be another's turn
                self.channel.withdraw(job)
            for job in waiting:
                self.end(job, ShuttingDown("the daemon is shutting down; this job had not started"))
        self._note_progress()

    def stop(self) -> None:
        """End the daemon: what runs may go on for `grace_s`, what waits ends now."""
        self.close(finish_waiting=False)
        self.grace.deadline = trio.current_time() + self.config.grace_s
        self.stop_requested.set()

    def drain(self) -> dict[str, Any]:
        """Finish all that was accepted, then end the daemon."""
        self.close(finish_waiting=True)
        self.stop_requested.set()
        return {"state": "draining", "jobs": len(self.admission)}

    def health(self) -> dict[str, Any]:
        """Healthy: some model is ready, and none is busy without having made a step for `stall_s`."""
        stalled = [model.entry.id for model in self.models if model.stalled_s() > self.config.stall_s]
        not_ready = [entry.id for entry in self.roster if entry.state != "ready"]
        healthy = not stalled and len(not_ready) < len(self.models) and not self.admission.closed
        state = "draining" if self.admission.closed else "ok" if healthy else "unhealthy"
        return {"status": state, "healthy": healthy, "stalled": stalled, "not_ready": not_ready}

    def list_models(self) -> dict[str, Any]:
        return {"models": [self.listing(entry) for entry in self.roster]}

    def job_status(self, id: str) -> dict[str, Any]:
        job = self.admission.find(id)
        waiting = job in self.backlog
        position = self.backlog.position(job) if waiting else 0
        return {
            "id": id,
            "state": job.state,
            "position": position,
            "eta_ms": self.admission.rate.wait_ms(position + 1) if waiting else 0,
        }

    def status(self) -> dict[str, Any]:
        now = trio.current_time()
        counters = asdict(self.counters)
        jobs = self.admission.jobs()
        oldest = self.backlog.oldest_accepted_at()
        rate = self.admission.rate.per_second
        parked = sum(job.state == "parked" for job in jobs)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(now - self._started_at, 3),
            "state": "draining" if self.admission.closed else "serving",
            "socket": self.config.socket,
            "queue": {
                "waiting": len(self.backlog) - parked,
                "limit": self.backlog.limit,
                "by_class": self.backlog.counts(),
                "oldest_wait_ms": 0 if oldest is None else int(1000 * (now - oldest)),
                "service_rate_per_s": None if rate is None else round(rate, 3),
            },
            "jobs": {
                "running": sum(job.state == "running" for job in jobs),
                "parked": parked,
                "delivering": sum(job.state == "delivering" for job in jobs),
                **{name: counters[name] for name in JOB_COUNTERS},
            },
            "sessions": len(self.sessions),
            "ranking": self.ranking.status(),
            "warm": self.warming.status(),
            "models": [self._model_status(model, now) for model in self.models],
            "connections": {"open": counters["connections"], "limit": self.config.max_connections},
            "callbacks": {
                "delivered": counters["delivered"],
                "failed": counters["undelivered"],
                "senders": counters["senders"],
            },
            "unknown_fields": counters["unknown_fields"],
        }

    def _model_status(self, model: Inference, now: float) -> dict[str, Any]:
        entry = model.entry
        return self.listing(entry) | {
            "tokens_per_s": round(entry.tokens_per_s(now), 1),
            "stalled_s": round(model.stalled_s(), 3),
            "driver_stats": dict(model.stats()),
        }

    def listing(self, entry: ModelEntry) -> dict[str, Any]:
        return entry.listing() | {"waiting": self.backlog.waiting_for(entry.lanes)}

    def _fit_caches(self) -> None:
        """As requests take more memory, or less, cached states get less or more."""
        if self.pool is not None and self.admission.held.caches_are_to_change():
            self.pool.share_out()

    def _note_progress(self) -> None:
        if not self.admission.closed:
            return
        if not self._undecided:
            self.all_ended.set()
        if not len(self.admission):
            self.drained.set()

    def _count(self, error: GranvilleError) -> None:
        if isinstance(error, Cancelled):
            self.counters.cancelled += 1
        elif isinstance(error, DeadlineExceeded):
            self.counters.expired += 1
        else:
            self.counters.failed += 1
