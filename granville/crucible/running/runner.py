"""Many runs in one process: start, follow, cancel, take up again."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import trio

from granville.client.address import DEFAULT_ADDRESS
from granville.client.background import Background
from granville.crucible.journal.records import RunRecord, packed
from granville.crucible.journal.runs import DEFAULT_KEEP_RUNS, Journal
from granville.crucible.journal.statements import cancel_steps, new_run, set_run
from granville.crucible.journal.writer import Hop, Writer
from granville.crucible.running.context import Context, ToolboxFor
from granville.crucible.running.failures import Interrupted
from granville.crucible.running.inputs import checked_inputs
from granville.crucible.running.keys import checked_run_id, new_run_id
from granville.crucible.running.link import WAIT_FOR_GRANVILLE_S, Dial, Link
from granville.crucible.running.progress import Progress
from granville.crucible.running.run import Run, RunTask, feed_of
from granville.crucible.running.warming import Warmer
from granville.crucible.tools.interface import Call, Tool, Toolbox, ToolFailed
from granville.crucible.workflow.model import Step, Workflow
from granville.errors import BadRequest, Conflict, GranvilleError, QueueFull

log = logging.getLogger(__name__)

DEFAULT_MAX_RUNS = 256
FULL_RETRY_MS = 1000
"""Of a runner that executes as many runs as it may."""
Clock = Callable[[], float]


class Runner:
    """Made by `open_runner`."""

    def __init__(
        self, nursery: trio.Nursery, link: Link, writer: Writer, toolbox_for: ToolboxFor, warmer: Warmer, *,
        max_runs: int, keep_runs: int, served: bool, clock: Clock, hop: Hop,
    ) -> None:  # fmt: skip
        self.journal = writer.journal
        self._nursery = nursery
        self._link = link
        self._writer = writer
        self._toolbox_for = toolbox_for
        self._warmer = warmer
        self._max_runs = max_runs
        self._keep_runs = keep_runs
        self._served = served
        self._clock = clock
        self._hop = hop
        self._tasks: dict[str, RunTask] = {}
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        """Of those who want to begin the run of an id."""
        self._coming = 0
        """Runs that are accepted and not in `_tasks` yet."""

    async def start(
        self, workflow: Workflow, inputs: Mapping[str, Any], *, run_id: str | None = None,
        folder: Path | None = Path(), allow: Collection[str] = (),
    ) -> Run:  # fmt: skip
        """A run is in the journal when this returns, and runs. `folder` is where its paths begin; without one it names
        no files. With the id of a run that is there already it is that run, taken up again if nobody executes it.
        Raises BadRequest for wrong inputs, Conflict when the id is another run's, QueueFull."""
        given = checked_inputs(workflow, inputs)
        _check_inlined(workflow.steps)
        plan, packed_inputs = msgspec.msgpack.encode(workflow), packed(given, "inputs")
        digest = hashlib.sha256(b"%d:%b%b" % (len(plan), plan, packed_inputs)).digest()
        run_id = new_run_id() if run_id is None else checked_run_id(run_id)
        async with self._turns.setdefault(run_id, trio.Lock()):  # asked for twice at once, it is begun once
            known = await self._known(run_id, digest)
            return known or await self._begin(workflow, given, plan, packed_inputs, digest, run_id, folder, allow)

    async def _begin(
        self, workflow: Workflow, given: dict[str, Any], plan: bytes, packed_inputs: bytes, digest: bytes, run_id: str,
        folder: Path | None, allow: Collection[str],
    ) -> Run:  # fmt: skip
        with self._room():
            lock = await self._hop(self.journal.locks.take, run_id)
            try:
                now = self._clock()
                deadline_at = None if workflow.timeout_s is None else now + workflow.timeout_s
                record = RunRecord(
                    id=run_id, workflow=workflow.name, state="running", created_at=now, updated_at=now,
                    deadline_at=deadline_at, inputs=given,
                    folder=_absolute(folder), allow=tuple(allow), served=self._served, pid=os.getpid(),
                )  # fmt: skip
                is_new = await self._hop(self.journal.digest, run_id) is None
                if is_new:
                    await self._writer.commit(new_run(record, plan, digest, packed_inputs))
            except BaseException:
                self.journal.locks.release(run_id, lock)
                raise
            if is_new:
                return self._execute(record, workflow, Progress(), lock)
            self.journal.locks.release(run_id, lock)
        # It has come since it was looked for, and nobody executes it any more.
        known = await self._known(run_id, digest)
        if known is None:
            raise Conflict(f"run_id: {run_id!r} was another run's, which has just been forgotten; try again")
        return known

    def find(self, run_id: str) -> Run | None:
        """A run that is executed here."""
        task = self._tasks.get(run_id)
        return None if task is None else task.run

    async def follow(self, run_id: str) -> Run:
        """A run that is executed here, or as the journal has it. Raises UnknownRun."""
        run = self.find(run_id)
        if run is None:
            record = await self._hop(self.journal.run, run_id)
            run = self.find(run_id) or Run.of_before(record, await self._hop(self.journal.steps, run_id))
        return run

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run; how it stands then: one that had ended stays as it was. Raises UnknownRun, and Conflict when
        another process executes it."""
        run = self.find(run_id)
        if run is None:
            record: RunRecord = await self._hop(self.journal.run, run_id)
            if record.ended_at is not None:
                return record
            lock = await self._hop(self.journal.locks.take, run_id)
            try:
                record = await self._hop(self.journal.run, run_id)
                if record.ended_at is None:  # it may have ended before the lock was free
                    now = self._clock()
                    row = set_run(run_id, "cancelled", now, error="cancelled by request", error_code="cancelled")
                    await self._writer.commit(row, cancel_steps(run_id, now))
            finally:
                self.journal.locks.release(run_id, lock)
            ended: RunRecord = await self._hop(self.journal.run, run_id)
            return ended
        run.cancel()
        return await run.finish()

    async def resume(self, run_id: str, *, retry: str | Collection[str] | None = None) -> Run:
        """Go on with a run where its journal ends; one that has failed, at the step that failed. A finished one is
        given as it is. `retry` names steps whose call was cut short and is to be made again. Raises UnknownRun,
        Conflict (cancelled, or executed by another process), Interrupted (a call was cut short), QueueFull."""
        run = self.find(run_id)
        if run is not None:
            return run
        record: RunRecord = await self._hop(self.journal.run, run_id)
        if record.state == "finished":
            return await self.follow(run_id)
        with self._room():
            lock = await self._hop(self.journal.locks.take, run_id)
            try:
                return await self._take_up(run_id, lock, {retry} if isinstance(retry, str) else set(retry or ()))
            except BaseException:
                self.journal.locks.release(run_id, lock)
                raise

    async def resume_all(self) -> list[Run]:
        """Take up what an earlier daemon with this journal has left unfinished. What cannot go on by itself is left as
        interrupted, and the log says why."""
        taken_up = []
        for run_id in await self._hop(self.journal.unfinished):
            try:
                taken_up.append(await self.resume(run_id))
            except GranvilleError as error:
                log.warning("run not taken up run=%s reason=%s", run_id, error)
        return taken_up

    async def _known(self, run_id: str, digest: bytes) -> Run | None:
        """The run that has this id; None when there is none."""
        known = await self._hop(self.journal.digest, run_id)
        if known is None:
            return None
        if known != digest:
            raise Conflict(f"run_id: {run_id!r} is another run, with another workflow or inputs; choose a fresh id")
        record: RunRecord = await self._hop(self.journal.run, run_id)
        if record.state == "interrupted":
            return await self.resume(run_id)
        return await self.follow(run_id)

    async def _take_up(self, run_id: str, lock: int, retry: Collection[str]) -> Run:
        record: RunRecord = await self._hop(self.journal.run, run_id)
        workflow: Workflow = await self._hop(self.journal.workflow, run_id)
        steps = await self._hop(self.journal.steps, run_id)
        if record.state == "cancelled":
            raise Conflict(f"{run_id}: the run was cancelled, and stays so; start a new one")
        progress = Progress(steps)
        cut_short = [key for key in progress.cut_short() if key not in retry]
        if cut_short:
            error = Interrupted(
                f"{cut_short[0]}: its call was cut short and may have had its effect; look, and if it is to be made "
                f"again resume the run with --retry {cut_short[0]}"
            )
            row = set_run(
                run_id, "interrupted", self._clock(), error=error.message, error_code=error.error, step=cut_short[0]
            )
            await self._writer.commit(row)
            raise error
        record = msgspec.structs.replace(
            record, state="running", error=None, error_code=None, step=None, ended_at=None, pid=os.getpid()
        )
        await self._writer.commit(set_run(run_id, "running", self._clock()))
        # What runs is not forgotten, but it may have been just before: its steps would then fail the whole commit.
        await self._hop(self.journal.run, run_id)
        return self._execute(record, workflow, progress, lock, feed_steps=steps)

    def _execute(
        self, record: RunRecord, workflow: Workflow, progress: Progress, lock: int, feed_steps: Collection[Any] = ()
    ) -> Run:
        context = Context(
            run_id=record.id, folder=Path(record.folder), allow=record.allow, link=self._link, writer=self._writer,
            feed=feed_of(record, list(feed_steps)), progress=progress, clock=self._clock, hop=self._hop,
            toolbox_for=self._toolbox_for, warmer=self._warmer, steps_done=record.steps_done,
        )  # fmt: skip
        task = self._tasks[record.id] = RunTask(record, workflow, context)
        self._nursery.start_soon(self._run, task, lock)
        return task.run

    async def _run(self, task: RunTask, lock: int) -> None:
        """Started by: whoever starts a run or takes it up. Ends when: the run does. Cancelled by: the runner's end."""
        try:
            await task.execute()
        finally:
            del self._tasks[task.run.id]
            self.journal.locks.release(task.run.id, lock)
        await self._hop(self._prune)

    def _prune(self) -> None:
        try:
            self.journal.prune(self._clock(), keep_runs=self._keep_runs)
        except sqlite3.Error as error:
            log.warning("old runs could not be forgotten error=%s", error)

    @contextmanager
    def _room(self) -> Iterator[None]:
        if len(self._tasks) + self._coming >= self._max_runs:
            raise QueueFull(
                f"{self._max_runs} runs are executed, and that is the most (--max-runs)", retry_after_ms=FULL_RETRY_MS
            )
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1


@asynccontextmanager
async def open_runner(
    *, address: str = DEFAULT_ADDRESS, journal: Journal, toolbox_for: ToolboxFor | None = None,
    max_runs: int = DEFAULT_MAX_RUNS, wait_for_granville_s: float = WAIT_FOR_GRANVILLE_S, served: bool = False,
    keep_runs: int = DEFAULT_KEEP_RUNS, clock: Clock = time.time, hop: Hop = trio.to_thread.run_sync,
    dial: Dial | None = None,
) -> AsyncIterator[Runner]:  # fmt: skip
    """A runner for the length of the body. Its end leaves the runs that are not finished as they are, to be resumed.

    `address` is Granville's; it need not be there yet. `clock` gives seconds since 1970; `hop` calls what may block,
    such as a commit, in a thread; `dial` connects to Granville (the last three for tests, in Trio's time).
    """
    link = Link(address, wait_s=wait_for_granville_s, dial=dial)
    writer = Writer(journal, hop)
    warmer = Warmer(link)
    async with Background() as outer:  # the writer outlives the runs: what they have come to is written down
        outer.start_soon(writer.run)
        try:
            async with Background() as nursery:  # the runs, and the connection that they share
                nursery.start_soon(link.run)
                nursery.start_soon(warmer.run)
                yield Runner(
                    nursery, link, writer, toolbox_for or no_tools, warmer, max_runs=max_runs, keep_runs=keep_runs,
                    served=served, clock=clock, hop=hop,
                )  # fmt: skip
        finally:
            writer.close()


class NoTools:
    """The toolbox of a runner that was given none."""

    def find(self, name: str) -> Tool:
        raise ToolFailed(f"{name}: this runner has no tools")

    async def call(self, name: str, arguments: Mapping[str, Any], call: Call) -> Any:
        await trio.lowlevel.checkpoint()
        return self.find(name)


@asynccontextmanager
async def no_tools(workflow: Workflow, folder: Path, allow: tuple[str, ...]) -> AsyncIterator[Toolbox]:
    await trio.lowlevel.checkpoint()
    yield NoTools()


def _absolute(folder: Path | None) -> str:
    """Where a run's paths begin, for whoever takes it up elsewhere; empty for a run that names no files."""
    return "" if folder is None else str(folder.absolute())


def _check_inlined(steps: Sequence[Step]) -> None:
    """Raises BadRequest for a workflow that names another one's file: a run has all that it runs with it."""
    for step in steps:
        if isinstance(step.workflow, str):
            raise BadRequest(
                f"{step.id}: workflow: {step.workflow!r} is a file; read the workflow with `read_workflow`, which "
                "puts in its place what the file says"
            )
        _check_inlined(step.steps or ())
        if step.workflow is not None:
            _check_inlined(step.workflow.steps)
