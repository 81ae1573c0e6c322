"""What all steps of one run share: where they write, whom they ask, whom they tell."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio

from granville.crucible.journal.records import StepRecord, plain, shortened
from granville.crucible.journal.statements import put_step
from granville.crucible.journal.writer import Hop, Writer
from granville.crucible.running.budget import Budget, added
from granville.crucible.running.events import DeltaEvent, StepEvent, StepKind, StepState
from granville.crucible.running.feed import Feed
from granville.crucible.running.link import Link
from granville.crucible.running.plan import Ended
from granville.crucible.running.progress import Progress, Turn
from granville.crucible.running.warming import Warmer
from granville.crucible.tools.interface import Toolbox
from granville.crucible.workflow.model import Workflow
from granville.errors import GranvilleError, TooLarge
from granville.wire.messages import Class

SHOWN_CHARS = 200
"""Of a value, in an event."""
KEPT_INPUT_CHARS = 64 << 10
"""Of what a step was given, in the journal; the values that it was made of are there whole."""
MAX_RUN_BYTES = 2 << 30
"""Of all values that one run puts out: they are in memory too."""
HOLDS = ("group", "workflow")
"""Kinds of step that hold others. Cut off by a crash they go on where they were, and so does their time."""
ATTEMPT_AT = "attempt_at"
"""In the `more` of their records while they run."""
MAX_CALLS_AT_ONCE = 64
"""Of tools, by one run: lists in lists multiply."""


class ToolboxFor(Protocol):
    def __call__(
        self, workflow: Workflow, folder: Path, allow: tuple[str, ...]
    ) -> AbstractAsyncContextManager[Toolbox]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A workflow that is being run: the run's own, or one that a step of it calls."""

    workflow: Workflow
    toolbox: Toolbox
    budget: Budget
    prefix: str = ""
    """Of its steps' keys and of its sessions' names."""
    priority: Class = "normal"


@dataclass(slots=True)
class Entry:
    """A step that is being run, as its record in the journal will say."""

    key: str
    kind: StepKind
    started_at: float
    """Seconds since 1970."""
    attempt_at: float = 0.0
    """When the attempt began that is made now; for steps that hold others it may have been in an earlier life."""
    attempts: int = 0
    inputs: Any = None
    usage: dict[str, int] | None = None
    once: bool = False
    session: str | None = None


@dataclass(slots=True)
class Outcome:
    """What a step has come to."""

    value: Any
    more: dict[str, Any] = field(default_factory=dict)
    turn: list[Turn] | None = None


@dataclass(kw_only=True)
class Context:
    run_id: str
    folder: Path
    allow: tuple[str, ...]
    link: Link
    writer: Writer
    feed: Feed
    progress: Progress
    clock: Callable[[], float]
    hop: Hop
    toolbox_for: ToolboxFor
    warmer: Warmer
    last_session: str | None = None
    """Which went on last."""
    running: set[str] = field(default_factory=set)
    """Keys of the steps that run now."""
    cut_off: list[str] = field(default_factory=list)
    """Keys of those that were cancelled, the innermost first."""
    steps_done: int = 0
    tool_places: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_CALLS_AT_ONCE))
    _bytes: int = 0
    _sessions: dict[str, trio.Lock] = field(default_factory=dict)

    def session_lock(self, session: str) -> trio.Lock:
        """Turns of a session are taken one by one, in the order in which they come."""
        return self._sessions.setdefault(session, trio.Lock())

    def deadline(self, entry: Entry, timeout_s: float | None) -> float:
        """In Trio's time, of a step whose attempt began when its entry says; never for no timeout."""
        if timeout_s is None:
            return float("inf")
        return trio.current_time() + timeout_s - (self.clock() - entry.attempt_at)

    async def begin(self, entry: Entry, inputs: Any = None, *, once: bool = False) -> None:
        """An attempt starts. It need not be on the disk before it does, unless it may not be made twice."""
        entry.inputs = shortened(inputs, KEPT_INPUT_CHARS)
        entry.once = once
        self.running.add(entry.key)
        more = {ATTEMPT_AT: entry.attempt_at} if entry.kind in HOLDS else {}
        row = put_step(self.run_id, self._record(entry, "running", more=more))
        if once:
            await self.writer.commit(row)
        else:
            self.writer.put(row)
        self._tell(entry, "running")

    def delta(self, key: str, text: str) -> None:
        if text:
            self.feed.tell(DeltaEvent(run_id=self.run_id, step=key, delta=text))

    def waits(self, entry: Entry, reason: str | None) -> None:
        """A step that runs waits for Granville; or, without a reason, goes on."""
        self._tell(entry, "running", waits=reason)

    def again(self, entry: Entry, error: GranvilleError, pause_s: float) -> None:
        """An attempt has failed, and another one follows."""
        self.running.discard(entry.key)
        self.writer.put(put_step(self.run_id, self._record(entry, "running", error=error.message)))
        self._tell(entry, "failed", error=error.message, retry_in_s=pause_s)

    async def end(self, entry: Entry, ended: Ended, turn: list[Turn] | None = None) -> Ended:
        """A step has ended, and whoever reads it may start: when this returns it is on the disk. Raises BadOutput for
        a value that cannot be kept, and JournalFailed."""
        value, data = plain(ended.value, "the value")
        self._bytes += len(data)
        if self._bytes > MAX_RUN_BYTES:
            raise TooLarge(f"the run's values have more than {MAX_RUN_BYTES} bytes; let steps put out less")
        self.running.discard(entry.key)
        record = self._record(
            entry, ended.state, ended=True, error=ended.error, more=dict(ended.more), turn=turn, ended_at=self.clock()
        )
        row = put_step(self.run_id, record, data)
        if ended.state == "skipped":  # decided the same way when the run is taken up again
            self.writer.put(row)
        else:
            await self.writer.commit(row)
        self.steps_done += 1
        if turn is not None and entry.session is not None:
            self.progress.conversation(entry.session).add(turn)
            self.last_session = entry.session
        self._tell(entry, ended.state, output=value, error=ended.error, usage=entry.usage)
        return Ended(
            ended.state, value, ended.puts_out, ended.error, entry.attempts, entry.usage, ended.more
        )  # fmt: skip

    def fail(self, entry: Entry, error: str) -> None:
        """A step has failed, and with it what is around it: it has not ended, and is run again if the run is."""
        self.running.discard(entry.key)
        record = self._record(entry, "failed", error=error, ended_at=self.clock())
        self.writer.put(put_step(self.run_id, record))
        self._tell(entry, "failed", error=error, usage=entry.usage)

    def cancel(self, entry: Entry) -> None:
        """A step was cut off. The journal has it as running until the run ends: it may be the process that ends."""
        if entry.key in self.running:
            self.running.discard(entry.key)
            self.cut_off.append(entry.key)
            self._tell(entry, "cancelled", usage=entry.usage)

    def _record(self, entry: Entry, state: StepState, **more: Any) -> StepRecord:
        return StepRecord(
            key=entry.key, kind=entry.kind, state=state, once=entry.once, attempts=max(1, entry.attempts),
            inputs=entry.inputs, usage=entry.usage, started_at=entry.started_at, session=entry.session, **more,
        )  # fmt: skip

    def _tell(self, entry: Entry, state: StepState, *, output: Any = None, **more: Any) -> None:
        now = self.clock()
        self.feed.tell(
            StepEvent(
                run_id=self.run_id, step=entry.key, kind=entry.kind, state=state, attempt=max(1, entry.attempts),
                at=now, duration_s=None if state == "running" else round(now - entry.started_at, 6),
                output=shortened(output, SHOWN_CHARS), **more,
            )
        )  # fmt: skip


def told(run_id: str, record: StepRecord) -> StepEvent:
    """What was told of a step in an earlier life of the run."""
    at = record.started_at if record.ended_at is None else record.ended_at
    return StepEvent(
        run_id=run_id, step=record.key, kind=record.kind, state=record.state, attempt=record.attempts, at=at,
        duration_s=None if record.ended_at is None else round(at - record.started_at, 6),
        output=shortened(record.output, SHOWN_CHARS), usage=record.usage, error=record.error,
    )  # fmt: skip


def added_usage(entry: Entry, usage: dict[str, int] | None) -> None:
    entry.usage = added(entry.usage, usage)
