"""One task a model: it keeps the model loaded, feeds its free slots, and turns its events into messages."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import trio

from granville.errors import WIRE_ERRORS, DriverFailed, GranvilleError, Internal
from granville.hosting.interface import DriverError, Failed, Finished, Generate, Message, Model, Output, Sampling, Token
from granville.nursery.stepper import Released, StepEvent, Stepper
from granville.scheduling.job import Job
from granville.scheduling.roster import ModelEntry
from granville.wire.messages import Request, Result, Usage, chat_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from granville.nursery.desk import Desk

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class Inference:
    """A model's side of the channel, and its life: load, serve, and after a failure load again."""

    def __init__(self, entry: ModelEntry, desk: Desk, make_stepper: Callable[[], Stepper]) -> None:
        self.entry = entry
        self._desk = desk
        self._make_stepper = make_stepper
        self._stepper: Stepper | None = None
        self._jobs: dict[str, Job] = {}
        self._closed = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started by: the kernel, which waits until the model is loaded. Ends when: cancelled, or the first load
        fails with DriverError. Cancelled by: the kernel's end."""
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
            if not started:
                raise failure
            if self._closed:
                log.warning("model failed while it was closed model=%s error=%s", self.entry.id, failure)
                return
            self._lost(failure)
            if trio.current_time() - began_at > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            await trio.sleep(backoff_s * random.uniform(0.8, 1.2))
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
        self.entry.state = "stopped"
        if self._stepper is not None:
            self._stepper.close()

    def stalled_s(self) -> float:
        return 0.0 if self._stepper is None else self._stepper.stalled_s()

    def start(self, job: Job) -> None:
        """Put a job on a free slot. The driver knows it by its arrival number: a client may use an id again."""
        assert self._stepper is not None
        key = str(job.arrival)
        self.entry.running.add(key)
        self._jobs[key] = job
        job.state = "running"
        job.model_id = self.entry.id
        job.started_at = trio.current_time()
        conversation = self._desk.sessions.conversation(job)
        messages = tuple(Message(message.role, message.content) for message in conversation)
        self._stepper.submit(to_generate(key, job, messages))

    def cancel(self, job: Job) -> None:
        """Take a job off its slot at the next step; the slot counts as busy until then."""
        key = str(job.arrival)
        if self._jobs.pop(key, None) is not None and self._stepper is not None:
            self._stepper.cancel(key)

    def _ready(self, model: Model) -> None:
        entry, info, can = self.entry, model.info, model.capabilities
        entry.slots = model.slots
        entry.architecture = info.architecture
        entry.context_size = info.context_size
        entry.memory_bytes = info.memory_bytes
        entry.features = frozenset(
            name
            for name, able in (("messages", can.messages), ("constrain", can.constrain), ("tools", can.tools))
            if able
        )
        entry.state = "ready"
        log.info("model ready model=%s slots=%d context_size=%d", entry.id, entry.slots, entry.context_size)

    def _lost(self, error: Exception) -> None:
        """The model is gone, and the work that was on its slots with it."""
        log.error("model lost model=%s error=%s", self.entry.id, error)
        self.entry.state = "restarting"
        self.entry.restarts += 1
        self.entry.last_error = str(error)
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self.entry.running.clear()
        for job in jobs:
            self._desk.end(job, DriverFailed(f"the driver failed while this job was running: {error}"))

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
        if isinstance(event, Token):
            job = self._jobs.get(event.id)
            if job is not None:
                self._desk.token(job, event.text)
            return
        self.entry.running.discard(event.id)
        job = self._jobs.pop(event.id, None)
        if job is None or isinstance(event, Released):
            return
        if isinstance(event, Finished):
            self._desk.end(job, to_result(job, self.entry, event))
        elif isinstance(event, Failed):
            self._desk.end(job, to_error(event))
        elif isinstance(event, Output):
            self._desk.end(job, DriverFailed("the driver gave a value where text was asked for"))
        else:
            self._desk.end(job, DriverFailed("the driver parked a job that nobody asked it to park"))


def first(group: BaseExceptionGroup[DriverError]) -> DriverError:
    """The first leaf of an exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DriverError)
    return error


def to_generate(key: str, job: Job, messages: tuple[Message, ...]) -> Generate:
    request: Request = job.request
    return Generate(
        id=key,
        messages=messages,
        max_tokens=request.max_tokens,
        sampling=Sampling(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            repeat_penalty=request.repeat_penalty,
            seed=request.seed,
        ),
        stop=tuple(request.stop or ()),
        urgency=int(job.priority),
    )


def to_result(job: Job, entry: ModelEntry, event: Finished) -> Result:
    usage = event.usage
    return Result(
        id=job.id,
        model_id=entry.id,
        tool_id="__chat__",
        tool_input_json=chat_json("".join(job.text)),
        priority=job.priority.wire,
        finish_reason=event.finish_reason,
        usage=Usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens),
    )


def to_error(event: Failed) -> GranvilleError:
    return WIRE_ERRORS.get(event.error, DriverFailed)(event.message)
