"""What a step of an ABI v2 driver brought, read and checked: nothing of it reaches the kernel before it makes sense."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from granville.hosting import cabi_types as c
from granville.hosting.interface import (
    DriverError,
    Event,
    Failed,
    Finished,
    FinishReason,
    Output,
    Parked,
    Token,
    ToolCall,
    Usage,
)
from granville.hosting.library import MAX_TEXT_BYTES
from granville.hosting.stops import StopText

REASONS: dict[int, FinishReason] = {1: "stop", 2: "length", c.FINISH_TOOL: "tool"}


@dataclass(slots=True)
class Job:
    """A job that runs or is parked."""

    id: str
    kind: int
    values: int = 0
    """How many vectors or numbers were asked for."""
    calls: bool = False
    """It has tools."""
    stops: StopText | None = None
    """Where the driver does not look for stop strings itself."""
    state: Literal["running", "parking", "parked"] = "running"
    stopped: bool = False
    """A stop string has ended its answer, and the driver does not know."""
    sampled: int = 0


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Reader:
    """Takes ended jobs out of `jobs`. What is wrong with a whole step raises DriverError: a driver that confuses jobs
    or kinds cannot be trusted with any; an answer that is wrong ends its own job."""

    def __init__(self, driver: str, jobs: dict[int, Job]) -> None:
        self._driver = driver
        self._jobs = jobs
        self._kinds: dict[int, Callable[[Job, c.Event], list[Event]]] = {
            c.TOKEN: self._token,
            c.FINISHED: self._finished,
            c.OUTPUT: self._output,
            c.FAILED: self._failed,
            c.PARKED: self._parked,
        }

    def read(self, batch: c.Events) -> list[Event]:
        """Copies all that the driver's memory has. Raises DriverError."""
        if not batch.count:
            return []
        if batch.count > c.MAX_EVENTS:
            raise self._wrong(f"{batch.count} events; {c.MAX_EVENTS} are the most")
        size = ctypes.sizeof(c.Event)
        if not size <= batch.event_size <= c.MAX_STRUCT_BYTES or batch.event_size % ctypes.alignment(c.Event):
            raise self._wrong(f"event_size {batch.event_size}; sizeof(struct granville_event) is {size} or more")
        if not batch.items:
            raise self._wrong(f"{batch.count} events, and items is NULL")
        events: list[Event] = []
        for index in range(batch.count):
            event = c.Event.from_address(batch.items + index * batch.event_size)
            job = self._jobs.get(event.job)
            if job is None:
                raise self._wrong(f"an event of job {event.job}, which does not run: it is unknown, or has ended")
            take = self._kinds.get(event.kind)
            if take is None:
                raise self._wrong(f"an event of the kind {event.kind}, which does not exist")
            if job.state == "parked":
                raise self._wrong(f"an event of job {event.job}, which is parked")
            events += take(job, event)
        return events

    def _token(self, job: Job, event: c.Event) -> list[Event]:
        self._only(job, event, c.GENERATE)
        text, tokens = self._text(event), self._tokens(event)
        if job.stopped:
            return []
        job.sampled += len(tokens) or 1
        if job.stops is not None:
            text, job.stopped = job.stops.feed(text)
        return [Token(job.id, text, tokens)]

    def _finished(self, job: Job, event: c.Event) -> list[Event]:
        self._only(job, event, c.GENERATE)
        reason = REASONS.get(event.code)
        if reason is None:
            raise self._wrong(f"FINISHED with code {event.code}, which is no GRANVILLE_FINISH_...")
        del self._jobs[event.job]
        if job.stopped:
            return [Finished(job.id, "stop", _usage(event))]
        call = self._call(job, event) if reason == "tool" else None
        rest = job.stops.rest() if job.stops is not None else ""
        ended = Finished(job.id, reason, _usage(event), call)
        return [Token(job.id, rest), ended] if rest else [ended]

    def _output(self, job: Job, event: c.Event) -> list[Event]:
        self._only(job, event, c.SCORE, c.EMBED, c.RERANK)
        count = event.value_count
        if count > c.MAX_EVENT_VALUES:
            raise self._wrong(f"an event with {count} values; {c.MAX_EVENT_VALUES} are the most")
        if count and not event.values:
            raise self._wrong(f"an event with {count} values, and values is NULL")
        del self._jobs[event.job]
        values = event.values[:count] if count else []
        if not all(map(math.isfinite, values)):
            return [Failed(job.id, "driver_failed", "the driver gave a number that is infinite, or none at all")]
        if job.kind != c.EMBED:
            if count != job.values:
                text = f"the driver gave {count} numbers where {job.values} were asked for"
                return [Failed(job.id, "driver_failed", text)]
            return [Output(job.id, values, _usage(event))]
        size, rest = divmod(count, job.values)
        if rest or not size:
            text = f"the driver gave {count} numbers, which are not {job.values} vectors of one length"
            return [Failed(job.id, "driver_failed", text)]
        return [Output(job.id, [values[at : at + size] for at in range(0, count, size)], _usage(event))]

    def _failed(self, job: Job, event: c.Event) -> list[Event]:
        text = self._text(event) or "the driver failed at it, and does not say why"
        del self._jobs[event.job]
        return [Failed(job.id, c.STATUS_ERRORS.get(event.code, "driver_failed"), text)]

    def _parked(self, job: Job, event: c.Event) -> list[Event]:
        if job.state != "parking":
            raise self._wrong(f"PARKED of job {event.job}, which nobody parked")
        if job.stopped:
            return []  # it has ended here, and is cancelled after the step
        job.state = "parked"
        return [Parked(job.id)]

    def _only(self, job: Job, event: c.Event, *kinds: int) -> None:
        if job.kind not in kinds:
            raise self._wrong(f"an event of the kind {event.kind} of job {event.job}, which is of the kind {job.kind}")

    def _call(self, job: Job, event: c.Event) -> ToolCall:
        if not job.calls:
            raise self._wrong(f"FINISH_TOOL of job {event.job}, which has no tools")
        try:
            call = msgspec.json.decode(self._text(event), type=_Call)
        except msgspec.DecodeError as error:
            raise self._wrong(f'FINISH_TOOL without {{"name", "arguments"}}: {error}') from None
        return ToolCall(call.name, msgspec.json.encode(call.arguments).decode())

    def _text(self, event: c.Event) -> str:
        size = event.text_size
        if not size:
            return ""
        if size > MAX_TEXT_BYTES:
            raise self._wrong(f"a text of {size} bytes; {MAX_TEXT_BYTES} are the most")
        if not event.text:
            raise self._wrong(f"a text of {size} bytes, and text is NULL")
        try:
            return ctypes.string_at(event.text, size).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(
                f"a text of job {event.job} that is not UTF-8, at byte {error.start}; an event has whole characters"
            ) from None

    def _tokens(self, event: c.Event) -> tuple[int, ...]:
        count = event.token_count
        if not count:
            return ()
        if count > c.MAX_EVENT_TOKENS:
            raise self._wrong(f"an event with {count} tokens; {c.MAX_EVENT_TOKENS} are the most")
        if not event.tokens:
            raise self._wrong(f"an event with {count} tokens, and tokens is NULL")
        tokens = tuple(event.tokens[:count])
        if min(tokens) < 0:
            raise self._wrong(f"the token {min(tokens)}; ids are not negative")
        return tokens

    def _wrong(self, what: str) -> DriverError:
        return DriverError(f"{self._driver}: step gave {what}")


def _usage(event: c.Event) -> Usage:
    return Usage(event.prompt_tokens, event.cached_tokens, event.completion_tokens, event.dropped_turns)
