"""One task a model: it keeps the model loaded, feeds its free slots, and turns its events into messages."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import trio

from granville.errors import DriverFailed, Internal
from granville.hosting.floor import Released, StepEvent
from granville.hosting.interface import Audio, DriverError, Failed, Finished, Message, Model, Output, Token, Warm
from granville.hosting.isolated import IsolatedModel
from granville.nursery.scores import Scores
from granville.nursery.stepper import Stepper
from granville.nursery.tasks import to_error, to_result, to_task
from granville.scheduling.job import Job
from granville.scheduling.memory import KEEPS_STATES
from granville.scheduling.roster import ModelEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from granville.nursery.desk import Desk

log = logging.getLogger(__name__)

MAX_PARKS = 3
"""How often a job gives its slot to a more urgent one; then it keeps it."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class Inference:
    """A model's side of the channel, and its life: load, serve, and after a failure load again."""

    def __init__(
        self, entry: ModelEntry, desk: Desk, make_stepper: Callable[[], Stepper], *, persistent: bool = False
    ) -> None:
        """`persistent`: it is tried again also when its very first load fails."""
        self.entry = entry
        self._desk = desk
        self._make_stepper = make_stepper
        self._stepper: Stepper | None = None
        self._jobs: dict[str, Job] = {}
        self._parked: dict[str, Job] = {}
        self._leaving: set[str] = set()
        """Jobs that are told to park."""
        self._scores = Scores()
        self._persistent = persistent
        self._closed = False
        self._closing = trio.Event()
        self._left = trio.Event()
        """Set, and made anew, whenever a job leaves its slot."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started by: the pool, which waits until the model is loaded or has failed for the first time. Ends when:
        closed, or the first load of one that is not persistent fails with DriverError. Cancelled by: the kernel's
        end."""
        started = False
        backoff_s = FIRST_BACKOFF_S
        while not self._closed:
            began_at = trio.current_time()
            try:
                await self._live(task_status if not started else trio.TASK_STATUS_IGNORED)
            except* DriverError as group:
                failure = first(group)
            else:
                return
            started = started or self.entry.slots > 0
            if not started and not self._persistent:
                raise failure
            if self._closed:
                log.warning("model failed while it was closed model=%s error=%s", self.entry.id, failure)
                return
            self._lost(failure)
            if not started:
                started = True
                task_status.started()
            if trio.current_time() - began_at > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            with trio.move_on_after(backoff_s * random.uniform(0.8, 1.2)):
                await self._closing.wait()
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        """One life of the model. Raises a group with a DriverError when it is lost."""
        self._stepper = self._make_stepper()
        # The stepper's call into the thread lasts as long as the model: a nursery, so as to know when it is loaded.
        async with trio.open_nursery() as nursery:
            model = await nursery.start(self._stepper.run, self._on_events)
            self._ready(model)
            task_status.started()
            self._desk.channel.dispatch()

    def close(self) -> None:
        """Let the model's loop end after its current step; `run` then returns."""
        self._closed = True
        self._closing.set()
        self.entry.state = "stopped"
        self._desk.warming.model_gone(self)
        if self._stepper is not None:
            self._stepper.close()

    def leave_behind(self) -> None:
        """Its driver hangs: nobody waits for its slots any more."""
        self.entry.running.clear()
        self._tell_of_a_free_slot()

    async def emptied(self) -> None:
        """Wait until no job is on a slot or parked."""
        while self.entry.running or self._parked:
            await self._left.wait()

    def jobs(self) -> list[Job]:
        """All that run here or are parked."""
        return [*self._jobs.values(), *self._parked.values()]

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """Does nothing while the model is not there."""
        if self._stepper is not None and self.entry.state in ("ready", "unloading"):
            self._stepper.limit_cache(kv_ram_bytes)

    def stalled_s(self) -> float:
        return 0.0 if self._stepper is None else self._stepper.stalled_s()

    def start(self, job: Job) -> None:
        """Put a job on a free slot. The driver knows it by its arrival number: a client may use an id again."""
        assert self._stepper is not None
        key = str(job.arrival)
        self.entry.running.add(key)
        self._jobs[key] = job
        job.state = "running"
        if self._parked.pop(key, None) is not None:
            self._stepper.resume(key)
            return
        job.model_id = self.entry.id
        job.started_at = trio.current_time()
        conversation = self._desk.sessions.conversation(job, self.entry.id)
        messages = tuple(Message(turn.role, turn.content, turn.token_ids) for turn in conversation)
        self._stepper.submit(to_task(key, job, messages))
        self._desk.warming.turn_began(job)

    async def score(self, prompt: str, labels: tuple[str, ...]) -> list[float] | None:
        """How likely each label is to follow the prompt, beside the jobs; None when the model is not there or fails
        at it."""
        if self._stepper is None or self.entry.state != "ready":
            return None
        return await self._scores.ask(self._stepper, prompt, labels)

    def warm(self, task: Warm) -> None:
        """Have the driver keep a prompt's beginning, or a session's state, beside the jobs."""
        if self._stepper is not None and self.entry.state == "ready":
            self._stepper.submit(task)

    def cool(self, key: str) -> None:
        """Have it keep that no longer."""
        if self._stepper is not None:
            self._stepper.cancel(key)

    def cancel(self, job: Job) -> None:
        """Take a job off its slot at the next step; the slot counts as busy until then. Or forget a parked one."""
        key = str(job.arrival)
        known = self._jobs.pop(key, None) or self._parked.pop(key, None)
        if known is not None and self._stepper is not None:
            self._stepper.cancel(key)
        self._tell_of_a_free_slot()

    def victim(self) -> Job | None:
        """The running job that would be parked first: of the lowest class, the one that came last."""
        if "park" not in self.entry.features or self.entry.free > 0 or not self._desk.may_park(self):
            return None
        able = [
            job for key, job in self._jobs.items()
            if job.parks < MAX_PARKS and key not in self._leaving and job.request.model_type in KEEPS_STATES
        ]  # fmt: skip
        return max(able, key=lambda job: (job.urgency, job.arrival), default=None)

    def park(self, job: Job) -> None:
        assert self._stepper is not None
        key = str(job.arrival)
        self._leaving.add(key)
        self._stepper.park(key)

    def parked_bytes(self) -> int:
        """What the driver keeps of parked jobs."""
        return int(self.stats().get("kv_parked_bytes", 0))

    def stats(self) -> Mapping[str, int | float | str]:
        return {} if self._stepper is None else self._stepper.stats()

    def _ready(self, model: Model) -> None:
        entry, info, can = self.entry, model.info, model.capabilities
        entry.slots = model.slots
        entry.architecture = info.architecture
        entry.context_size = info.context_size
        entry.memory_bytes = info.memory_bytes
        entry.pid = model.pid if isinstance(model, IsolatedModel) else None
        entry.features = frozenset(
            name
            for name, able in (
                ("messages", can.messages),
                ("sampling", can.sampling),
                ("constrain", can.constrain),
                ("tools", can.tools),
                ("park", can.park),
                ("score", can.score),
                ("warm", can.warm),
                ("drop_oldest", can.drop_oldest),
                ("resume", can.resume),
            )
            if able
        )
        if entry.serves:  # it may have been unloaded meanwhile
            entry.state = "ready"
            self._desk.rescue.joined(entry)
        if self._desk.pool is not None:
            self._desk.pool.loaded(entry)
        self._desk.ranking.model_ready(self)
        self._desk.warming.model_ready(self)
        log.info("model ready model=%s slots=%d context_size=%d", entry.id, entry.slots, entry.context_size)

    def _lost(self, error: Exception) -> None:
        """The model is gone, and the work that was on its slots with it."""
        log.error("model lost model=%s error=%s", self.entry.id, error)
        was_ready = self.entry.state == "ready"
        if self.entry.state != "unloading":
            self.entry.state = "restarting" if self.entry.slots else "failed"
        self.entry.drains = False
        self.entry.restarts += 1
        self.entry.last_error = str(error)
        self.entry.pid = None
        jobs, parked = list(self._jobs.values()), list(self._parked.values())
        for mapping in (self._jobs, self._parked, self._leaving):
            mapping.clear()
        self._scores.lost()
        self.entry.running.clear()
        self._tell_of_a_free_slot()
        for job in jobs:
            self._desk.rescue.lost(job, error)
        for job in parked:
            self._desk.rescue.lost_while_parked(job, error)
        self._desk.rescue.vacate(self.entry.id, keep_suspects=was_ready)

    def _on_events(self, events: list[StepEvent]) -> None:
        with self._desk.cork:
            self._take_in(events)

    def _take_in(self, events: list[StepEvent]) -> None:
        tokens = 0
        for event in events:
            job = self._jobs.get(event.id)
            try:
                self._on_event(event)
                if isinstance(event, Token):
                    tokens += len(event.token_ids)
            except Exception:
                log.exception("an event failed model=%s", self.entry.id)
                self._jobs.pop(event.id, None)
                if job is not None:
                    self._desk.end(job, Internal("the daemon failed on this job's answer"))
        if tokens:
            self.entry.produced(tokens, trio.current_time())
        if self.entry.free:
            self._desk.channel.dispatch()

    def _on_event(self, event: StepEvent) -> None:
        if self._scores.take(event) or self._desk.warming.take(event):
            return
        if isinstance(event, Token | Audio):
            job = self._jobs.get(event.id)
            if job is not None:
                self._on_piece(job, event)
            return
        self.entry.running.discard(event.id)
        self._leaving.discard(event.id)
        self._tell_of_a_free_slot()
        job = self._jobs.pop(event.id, None)
        if job is None or isinstance(event, Released):
            return
        if isinstance(event, Finished | Output):
            self._desk.end(job, to_result(job, self.entry, event))
        elif isinstance(event, Failed):
            self._desk.end(job, to_error(event))
        else:
            self._parked[event.id] = job
            self._desk.put_back(job)

    def _on_piece(self, job: Job, event: Token | Audio) -> None:
        if isinstance(event, Audio) is not (job.request.model_type == "tts"):
            self._desk.end(job, DriverFailed("the driver gave sound where text was asked for, or text where sound was"))
        elif isinstance(event, Audio):
            self._desk.sound(job, event.pcm, event.sample_rate)
        else:
            self._desk.token(job, event.text, event.token_ids)

    def _tell_of_a_free_slot(self) -> None:
        self._left.set()
        self._left = trio.Event()


def first(group: BaseExceptionGroup[DriverError]) -> DriverError:
    """The first leaf of an exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DriverError)
    return error
