"""One run: from its first step, or the one that it had reached, to its one terminal state."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from granville.crucible.journal.records import RunRecord, StepRecord, plain
from granville.crucible.journal.statements import cancel_steps, set_run
from granville.crucible.journal.writer import JournalFailed
from granville.crucible.running.context import Context, told
from granville.crucible.running.events import Event, RunEvent, RunState
from granville.crucible.running.failures import StepFailed
from granville.crucible.running.feed import Feed
from granville.crucible.running.frames import Executor, top_level
from granville.crucible.running.warming import beginnings
from granville.crucible.workflow.model import Workflow
from granville.errors import Cancelled, DeadlineExceeded, GranvilleError, Internal

log = logging.getLogger(__name__)

SHOWN_KEYS = 5


class Run:
    """A run that is executed here, or that was executed before: both can be followed and waited for."""

    def __init__(self, record: RunRecord, feed: Feed, *, on_cancel: Callable[[], None] | None = None) -> None:
        self.record = record
        """As it is now."""
        self._feed = feed
        self._done = trio.Event()
        self._on_cancel = on_cancel
        if on_cancel is None:
            self._done.set()
            feed.close()

    @classmethod
    def of_before(cls, record: RunRecord, steps: Sequence[StepRecord]) -> Run:
        """A run as the journal has it, which nobody executes."""
        return cls(record, feed_of(record, steps))

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def is_done(self) -> bool:
        """Nobody executes it any more."""
        return self._done.is_set()

    def events(self, *, deltas: bool = True) -> AsyncGenerator[Event, None]:
        """All that it has told so far, then what it tells; ends with the run's end. Any number may follow. Its models
        stream as long as one of them wants `deltas`."""
        return self._feed.events(deltas=deltas)

    async def finish(self) -> RunRecord:
        """Wait until nobody executes it any more: it has ended, or is interrupted."""
        await self._done.wait()
        return self.record

    def _end(self, record: RunRecord) -> None:
        self.record = record
        self._feed.tell(run_event(record, record.state, record.updated_at))
        self._feed.close()
        self._done.set()

    def cancel(self) -> None:
        """Have it end as `cancelled`; `finish` waits for that."""
        if self._on_cancel is not None and not self.is_done:
            self._on_cancel()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run has ended."""

    state: RunState
    outputs: dict[str, Any] | None = None
    data: bytes | None = None
    """The outputs as the journal has them."""
    error: str | None = None
    error_code: str | None = None
    step: str | None = None

    @classmethod
    def of(cls, state: RunState, error: GranvilleError, step: str | None = None) -> Verdict:
        text = error.message if step is None else f"{step}: {error.message}"
        return cls(state, error=text, error_code=error.error, step=step)


class RunTask:
    """What executes a run."""

    def __init__(self, record: RunRecord, workflow: Workflow, context: Context) -> None:
        self.run = Run(record, context.feed, on_cancel=self._cancel)
        self._workflow = workflow
        self._context = context
        self._scope = trio.CancelScope()

    async def execute(self) -> None:
        """Started by: the runner. Ends when: the run has its terminal state, which is in the journal then. Cancelled
        by: the runner's end; then the journal has it as running, and it can be taken up again."""
        verdict = Verdict("interrupted", error="its process has ended")
        try:
            verdict = await self._settled(await self._verdict())
        finally:
            now = self._context.clock()
            self.run._end(
                msgspec.structs.replace(
                    self.run.record, state=verdict.state, outputs=verdict.outputs, error=verdict.error,
                    error_code=verdict.error_code, step=verdict.step, updated_at=now, pid=None,
                    steps_done=self._context.steps_done, ended_at=None if verdict.state == "interrupted" else now,
                )
            )  # fmt: skip

    async def _verdict(self) -> Verdict:
        timeout = trio.CancelScope(deadline=self._deadline())
        try:
            with self._scope, timeout:
                outputs, data = plain(await self._work(), "the run's outputs")
                return Verdict("finished", outputs, data)
        except StepFailed as failure:
            return Verdict.of("failed", failure.error, failure.key)
        except JournalFailed as error:
            return Verdict.of("interrupted", error)
        except GranvilleError as error:
            return Verdict.of("failed", error)
        except Exception:  # a defect of ours fails this run, and no other
            log.exception("run failed run=%s", self.run.id)
            return Verdict.of("failed", Internal("a defect of Crucible's, which its log tells of"))
        if timeout.cancelled_caught:
            return Verdict.of("failed", self._too_late())
        return Verdict.of("cancelled", Cancelled("cancelled by request"))

    async def _work(self) -> dict[str, Any]:
        context = self._context
        inputs: Mapping[str, Any] = self.run.record.inputs or {}
        async with context.toolbox_for(self._workflow, context.folder, context.allow) as toolbox:
            level = top_level(context, self._workflow, toolbox)
            for hint in beginnings(self._workflow, level.priority):
                context.warmer.tell(hint, toolbox)
            return await Executor(context, level).run(inputs)

    async def _settled(self, verdict: Verdict) -> Verdict:
        """Written down; from here on it is the run's only end."""
        if verdict.state == "interrupted":
            return verdict
        now = self._context.clock()
        row = set_run(
            self.run.id, verdict.state, now, outputs=verdict.data, error=verdict.error, error_code=verdict.error_code,
            step=verdict.step,
        )  # fmt: skip
        try:
            await self._context.writer.commit(row, cancel_steps(self.run.id, now))
        except JournalFailed as error:
            return Verdict.of("interrupted", error)
        return verdict

    def _deadline(self) -> float:
        """A wall clock's time as Trio's."""
        if self.run.record.deadline_at is None:
            return float("inf")
        return trio.current_time() + self.run.record.deadline_at - self._context.clock()

    def _too_late(self) -> DeadlineExceeded:
        cut_off = self._context.cut_off
        shown = ", ".join(cut_off[:SHOWN_KEYS]) + ("…" if len(cut_off) > SHOWN_KEYS else "")
        what = f"; what ran was {shown}" if cut_off else ""
        return DeadlineExceeded(f"the run's {self._workflow.timeout_s or 0:g} s (timeout_s) are over{what}")

    def _cancel(self) -> None:
        self._scope.cancel()


def run_event(record: RunRecord, state: RunState, at: float) -> RunEvent:
    return RunEvent(
        run_id=record.id, workflow=record.workflow, state=state, at=at, outputs=record.outputs, error=record.error,
        step=record.step,
    )  # fmt: skip


def feed_of(record: RunRecord, steps: Sequence[StepRecord]) -> Feed:
    """What a run has told so far, from its journal."""
    feed = Feed()
    feed.tell(run_event(msgspec.structs.replace(record, outputs=None, error=None), "running", record.created_at))
    for step in steps:
        if step.ended or record.state != "running":
            feed.tell(told(record.id, step))
    if record.state != "running":
        feed.tell(run_event(record, record.state, record.updated_at))
    return feed
