"""The events of a model, judged one by one: what job each is of, and whether it may come now."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from granville.errors import WIRE_ERRORS
from granville.hosting.interface import (
    Audio,
    Embed,
    Event,
    Failed,
    Finished,
    Generate,
    Output,
    Parked,
    Rerank,
    Score,
    Speak,
    Task,
    Token,
    ToolCall,
    Transcribe,
    Usage,
    Warm,
)
from granville.wire.speech import Heard
from granville.wire.wav import MAX_RATE, MIN_RATE, SAMPLE_BYTES

Break = Callable[[str, str], None]
"""Called with a rule and what was seen."""
State = Literal["running", "parked", "ended", "cancelled"]
SHOWN_CHARACTERS = 60
SHOWN_BEFORE = 12
"""Of what two texts have in common, before they part."""


@dataclass
class Job:
    """A job, and all that came for it."""

    task: Task
    state: State = "running"
    pieces: list[Token] = field(default_factory=list)
    sample_rate: int | None = None
    """Hz, of its first sound."""
    samples: int = 0
    """Of all of it; the sound itself is not kept, or the ledger would be taken for a leak of the driver's."""
    events: int = 0
    end: Finished | Output | Failed | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece.text, str))

    @property
    def token_ids(self) -> list[int]:
        return [id for piece in self.pieces if isinstance(piece.token_ids, tuple | list) for id in piece.token_ids]

    @property
    def sound_s(self) -> float:
        return 0.0 if self.sample_rate is None else self.samples / self.sample_rate

    @property
    def usage(self) -> Usage:
        return Usage() if self.end is None or isinstance(self.end, Failed) else self.end.usage


class Ledger:
    """Keeps the jobs of one model. What is against a rule is told and left out."""

    def __init__(self, broke: Break) -> None:
        self.jobs: dict[str, Job] = {}
        self.judged = 0
        self._broke = broke

    def submitted(self, task: Task) -> Job:
        job = self.jobs[task.id] = Job(task)
        return job

    def cancelled(self, id: str) -> None:
        job = self.jobs.get(id)
        if job is not None and job.state in ("running", "parked"):
            job.state = "cancelled"

    def resumed(self, id: str) -> None:
        self.jobs[id].state = "running"

    def take(self, returned: object) -> list[Event]:
        """The events of a step, without those that break a rule."""
        if not isinstance(returned, list):
            self._broke("events", f"step() returned {a(returned)}, not a list")
            return []
        return [event for event in returned if self._take(event)]

    def _take(self, event: Any) -> bool:
        self.judged += 1
        if not isinstance(event, Token | Audio | Finished | Output | Failed | Parked):
            self._broke("events", f"step() returned a list with {a(event)} in it: {shown(event)}")
            return False
        kind, id = type(event).__name__, event.id
        job = self.jobs.get(id) if isinstance(id, str) else None
        if job is None:
            self._broke("known-jobs", f"{kind} for {shown(id)}, which was never submitted")
            return False
        if job.state == "cancelled":
            self._broke("after-cancel", f"{kind} for job {id!r} after cancel({id!r}) had returned")
            return False
        if job.state == "ended":
            self._broke("one-end", f"{kind} for job {id!r} after its {type(job.end).__name__}")
            return False
        wrong = _wrong(event, job)
        if wrong is not None:
            self._broke(*wrong)
            if isinstance(event, Audio):
                return False  # of no use to whoever adds it up
        job.events += 1
        self._enter(event, job)
        return True

    def _enter(self, event: Event, job: Job) -> None:
        match event:
            case Token():
                job.pieces.append(event)
            case Audio():
                if job.sample_rate is None:
                    job.sample_rate = event.sample_rate
                job.samples += len(event.pcm) // SAMPLE_BYTES
            case Parked():
                job.state = "parked"
            case Finished() | Output() | Failed():
                job.state = "ended"
                job.end = event


def _wrong(event: Event, job: Job) -> tuple[str, str] | None:
    """The rule that an event breaks, by itself or as a part of its job, and how."""
    task = job.task
    of = f"of job {event.id!r}"
    match event:
        case Token(text=str() as text) if not _writable(text):
            return "token-text", f"Token {of} has half a character in it (a lone surrogate): {shown(text)}"
        case Token(text=text) if not isinstance(text, str):
            return "token-text", f"Token.text {of} is {a(text)}, not str: {shown(text)}"
        case Token(token_ids=ids) if not isinstance(ids, tuple) or not all(type(one) is int for one in ids):
            return "events", f"Token.token_ids {of} is {shown(ids)}, not a tuple of int"
        case Token() if not isinstance(task, Generate | Transcribe):
            return "events", f"Token {of}, which is a {type(task).__name__} and gives no text"
        case Token() if isinstance(task, Transcribe) and event.token_ids:
            return "events", f"Token {of} has token_ids, and a transcript has text alone"
        case Audio() if (wrong := _wrong_sound(event, job)) is not None:
            return "events", f"Audio {of}: {wrong}"
        case Finished() | Output() if not _counts(event.usage):
            return "events", f"usage {of} is {shown(event.usage)}, not a Usage of whole numbers from 0 up"
        case Finished(finish_reason=reason) if reason not in ("stop", "length", "tool"):
            return "events", f"finish_reason {of} is {shown(reason)}, not stop, length or tool"
        case Finished(finish_reason=reason, call=call) if (reason == "tool") is not isinstance(call, ToolCall):
            return "events", f"Finished {of} has finish_reason {reason!r} and call {shown(call)}"
        case Finished() if not isinstance(task, Generate):
            return "events", f"Finished {of}, which is a {type(task).__name__} and ends with Output"
        case Output(value=value) if (wrong := _wrong_value(value, job)) is not None:
            return "events", f"Output {of}: {wrong}"
        case Failed(error=error) if not isinstance(error, str) or error not in WIRE_ERRORS:
            return "job-errors", f"Failed {of} has error {shown(error)}; the names are {', '.join(WIRE_ERRORS)}"
        case Failed(message=message) if not isinstance(message, str) or not message.strip():
            return "job-errors", f"Failed {of} has the message {shown(message)}"
    return None


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _counts(usage: object) -> bool:
    return isinstance(usage, Usage) and all(
        type(count) is int and count >= 0
        for count in (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
    )


def _wrong_sound(event: Audio, job: Job) -> str | None:
    """What is wrong with a piece of sound, None for nothing."""
    rate, pcm = event.sample_rate, event.pcm
    if not isinstance(job.task, Speak):
        return f"the job is a {type(job.task).__name__} and gives no sound"
    if not isinstance(pcm, bytes) or len(pcm) % SAMPLE_BYTES:
        return f"pcm is {a(pcm)}, not bytes of whole 16-bit samples: {shown(pcm)}"
    if type(rate) is not int or not MIN_RATE <= rate <= MAX_RATE:
        return f"sample_rate is {shown(rate)}, not a whole number from {MIN_RATE} to {MAX_RATE}"
    if job.sample_rate not in (None, rate):
        return f"sample_rate is {rate}, and was {job.sample_rate} before"
    return None


def _wrong_value(value: object, job: Job) -> str | None:
    """What is wrong with the value of an Output, None for nothing."""
    task = job.task
    if isinstance(task, Speak):
        if not isinstance(value, dict) or not isinstance(value.get("duration_s"), int | float):
            return f"the value is {shown(value)}, without the number duration_s"
        return None if job.samples else "no Audio came before it"
    if isinstance(task, Transcribe):
        try:
            msgspec.convert(value, Heard)
        except msgspec.ValidationError as error:
            return f"the value is no transcript: {error}"
        return None
    if not isinstance(value, list):
        return f"the value is {a(value)}, not a list"
    match task:
        case Generate():
            return "a Generate ends with Finished, its text in Tokens"
        case Score(labels=wanted) | Embed(texts=wanted) | Rerank(documents=wanted):
            if len(value) != len(wanted):
                return f"{len(value)} values for {len(wanted)} {'labels' if isinstance(task, Score) else 'texts'}"
        case Warm() if len(value) != 1:
            return f"{len(value)} values for a Warm, which has one: how many tokens are in memory"
    rows = value if isinstance(task, Embed) else [value]
    for row in rows:
        if not isinstance(row, list) or not all(isinstance(one, int | float) and math.isfinite(one) for one in row):
            return f"{shown(row)} is no list of finite numbers"
    return None


def a(value: object) -> str:
    """What kind of thing it is, with its article."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def shown(value: object) -> str:
    """A value as Python writes it, cut to a line."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def difference(one: str, other: str) -> str:
    """Where two texts that are not the same part."""
    shorter = min(len(one), len(other))
    at = next((at for at in range(shorter) if one[at] != other[at]), shorter)
    begin = max(0, at - SHOWN_BEFORE)
    return f"from character {at} on: {shown(one[begin:])} and {shown(other[begin:])}"
