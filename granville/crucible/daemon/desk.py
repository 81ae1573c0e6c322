"""What the daemon does for whoever asks, by socket or by HTTP: start, follow, show, cancel and resume runs."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from granville import __version__
from granville.client import connect
from granville.crucible.daemon.settings import CrucibleConfig
from granville.crucible.journal.records import RunRecord, StepRecord, shortened
from granville.crucible.running.events import DeltaEvent, Event, RunState
from granville.crucible.running.run import Run
from granville.crucible.running.runner import Runner
from granville.crucible.workflow.model import Workflow
from granville.crucible.workflow.reading import open_workflow, workflow_from
from granville.doors.outbox import Cork
from granville.errors import BadRequest, Conflict, GranvilleError, ShuttingDown

log = logging.getLogger(__name__)

LOOK_CHARS = 2000
"""Of a value that is shown shortened."""
PING_S = 2.0
"""A Granville that does not answer within this is not reachable."""
KEPT_EPOCH = "kept"
"""Of events that are told out of the journal."""
HEALTH_S = 1.0
"""How long what is known of health is believed."""


@dataclass(slots=True)
class Counters:
    """Since the daemon started."""

    accepted: int = 0
    ended: dict[str, int] = field(
        default_factory=lambda: {"finished": 0, "failed": 0, "cancelled": 0, "interrupted": 0}
    )
    rejected: int = 0
    delivered: int = 0
    undelivered: int = 0
    connections: int = 0
    senders: int = 0
    unknown_fields: int = 0


class Changes:
    """Tells watchers that some run has begun or ended."""

    def __init__(self) -> None:
        self.number = 0
        self._news = trio.Event()

    def tell(self) -> None:
        self.number += 1
        self._news.set()
        self._news = trio.Event()

    async def after(self, number: int) -> int:
        await trio.lowlevel.checkpoint()
        while self.number <= number:
            await self._news.wait()
        return self.number


class Desk:
    def __init__(self, config: CrucibleConfig, runner: Runner, nursery: trio.Nursery) -> None:
        """The nursery holds one task a run that goes on, and ends after the runs do."""
        self.config = config
        self.cork = Cork()
        self.counters = Counters()
        self.changes = Changes()
        self.stop_requested = trio.Event()
        self.is_closing = False
        self.nursery = nursery
        self._runner = runner
        self._journal = runner.journal
        self._live: dict[str, Run] = {}
        self._owners: dict[str, set[object] | None] = {}
        """Of a run that goes on: who want it, and without whom it is cancelled. None: it goes on by itself."""
        self._idle = trio.Event()
        self._telling = 0
        self._one_told = trio.Event()
        self._started_at = trio.current_time()
        self._epoch = f"{os.getpid():x}{int(self._started_at * 1000) & 0xFFFFFFFF:x}"
        self._health: dict[str, Any] = {}
        self._health_until = -1.0
        self._looking = trio.Lock()

    def stop(self) -> None:
        """Take no new runs; the rest is the daemon's end."""
        self.is_closing = True
        self.stop_requested.set()

    async def idle(self) -> None:
        """Wait until no run goes on."""
        while self._live:
            self._idle = trio.Event()
            await self._idle.wait()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Someone is told of a run until its end: the doors wait for that."""
        self._telling += 1
        try:
            yield
        finally:
            self._telling -= 1
            self._one_told.set()

    async def all_told(self) -> None:
        while self._telling:
            self._one_told = trio.Event()
            await self._one_told.wait()

    async def read(self, given: dict[str, Any] | str | None, path: str | None) -> tuple[Workflow, Path | None]:
        """A workflow that was sent, or the file that was named, and the folder where its paths begin, None for none.
        Raises BadRequest, and WorkflowError."""
        if path is not None:
            if not os.path.isabs(path):
                raise BadRequest(f"path: {path!r} is relative, and the daemon's folder is not yours; make it absolute")
            reading = partial(open_workflow, Path(path), tools=self.config.tools)
            return await trio.to_thread.run_sync(reading), Path(path).parent
        return await trio.to_thread.run_sync(partial(workflow_from, given or "", tools=self.config.tools)), None

    async def begin(
        self, given: dict[str, Any] | str | None, path: str | None, inputs: dict[str, Any], id: str | None
    ) -> Run:
        """A run that is in the journal. Raises the GranvilleError that the client is to be told."""
        self._check_open()
        workflow, folder = await self.read(given, path)
        return await self.begin_read(workflow, folder, inputs, id)

    async def begin_read(self, workflow: Workflow, folder: Path | None, inputs: dict[str, Any], id: str | None) -> Run:
        self._check_open()
        run = await self._runner.start(workflow, inputs, run_id=id, folder=folder, allow=self.config.allow)
        return self._attend(run)

    async def resume(self, id: str, retry: str | None) -> Run:
        self._check_open()
        return self._attend(await self._runner.resume(id, retry=retry))

    async def resume_all(self) -> list[Run]:
        runs = [self._attend(run) for run in await self._runner.resume_all()]
        for run in runs:
            self.hold(run.id, None)
        return runs

    def hold(self, id: str, owner: object | None) -> None:
        """Someone wants the run; None stands for whoever asks for its result later."""
        if id not in self._live:
            return
        owners = self._owners.setdefault(id, set())
        if owner is None:
            self._owners[id] = None
        elif owners is not None:
            owners.add(owner)

    async def let_go(self, id: str, owner: object) -> None:
        """An owner has gone; with the last of them the run is cancelled.

        Started by: the owner's connection. Ends when: the run has ended. Cancelled by: the daemon's end.
        """
        owners = self._owners.get(id)
        if not owners or owner not in owners:
            return
        owners.remove(owner)
        if not owners and not self.is_closing and self._runner.find(id) is not None:
            log.info("run cancelled, its client has gone id=%s", id)
            try:
                await self._runner.cancel(id)
            except GranvilleError as error:
                log.warning("run not cancelled id=%s reason=%s", id, error)

    async def cancel(self, id: str) -> dict[str, Any]:
        record = await self._runner.cancel(id)
        return {"id": id, "state": record.state}

    async def list(self, limit: int, state: RunState | None) -> list[dict[str, Any]]:
        records = await trio.to_thread.run_sync(self._journal.runs, limit, state)
        return [builtins(record) for record in records]

    async def record(self, id: str) -> RunRecord:
        """Raises UnknownRun."""
        return await trio.to_thread.run_sync(self._journal.run, id)

    async def show(self, id: str, *, full: bool) -> dict[str, Any]:
        """The run and its steps."""
        record = await self.record(id)
        steps = await trio.to_thread.run_sync(self._journal.steps, id)
        return shown(record, steps, full=full)

    async def events(self, id: str, *, deltas: bool = True, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """A run's events from the beginning, each with its number; deltas have the number of the state before them.
        With `after`, those up to that number are left out. The last event is the run's end, or its interruption. Raises
        UnknownRun."""
        number = 0
        run = await self._runner.follow(id)
        async with aclosing(run.events(deltas=deltas)) as events:
            async for event in events:
                number += not isinstance(event, DeltaEvent)
                if number > after:
                    yield number, event

    async def check_followable(self, id: str) -> None:
        """Raises UnknownRun, and Conflict for a run that goes on in another process, which alone can tell of it."""
        record = await self.record(id)
        if record.state == "running" and self._runner.find(id) is None:
            raise Conflict(f"{id}: process {record.pid} executes this run; it can be shown here, and followed there")

    def epoch(self, id: str) -> str:
        """Numbers of events mean the same for as long as this is the same."""
        return self._epoch if self._runner.find(id) is not None else KEPT_EPOCH

    def status(self) -> dict[str, Any]:
        counted = msgspec.to_builtins(self.counters)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "closing" if self.is_closing else "serving",
            "uptime_s": trio.current_time() - self._started_at,
            "granville": self.config.granville,
            "runs": {"going_on": len(self._live), "limit": self.config.max_runs, "live": list(self._live)},
            **counted,
        }

    async def health(self) -> dict[str, Any]:
        """Asked anew when what is known is older than HEALTH_S, by one at a time."""
        async with self._looking:
            if trio.current_time() >= self._health_until:
                self._health = await self._look()
                self._health_until = trio.current_time() + HEALTH_S
        state = "closing" if self.is_closing else None
        healthy = state is None and self._health["granville"] == self._health["journal"] == "ok"
        return {"healthy": healthy, "status": state or ("ok" if healthy else "unhealthy"), **self._health}

    async def _look(self) -> dict[str, Any]:
        granville = "ok"
        try:
            with trio.fail_after(PING_S):
                async with connect(self.config.granville) as client:
                    await client.ping()
        except GranvilleError as error:
            granville = error.message
        except trio.TooSlowError:
            granville = f"{self.config.granville} does not answer within {PING_S:g} s"
        journal = "ok"
        try:
            await trio.to_thread.run_sync(self._journal.check)
        except (GranvilleError, sqlite3.Error, OSError) as error:
            journal = str(error)
        return {"granville": granville, "journal": journal}

    def _check_open(self) -> None:
        if self.is_closing:
            raise ShuttingDown("the daemon is shutting down, and takes no more runs")

    def _attend(self, run: Run) -> Run:
        if run.id not in self._live and not run.is_done:
            self._live[run.id] = run
            self.counters.accepted += 1
            self.nursery.start_soon(self._see_it_end, run)
            self.changes.tell()
        return run

    async def _see_it_end(self, run: Run) -> None:
        """Started by: whoever starts or resumes the run. Ends when: the run does. Cancelled by: the daemon's end."""
        record = await run.finish()
        del self._live[run.id]
        self._owners.pop(run.id, None)
        self.counters.ended[record.state] += 1
        self.changes.tell()
        self._idle.set()


def shown(record: RunRecord, steps: list[StepRecord], *, full: bool) -> dict[str, Any]:
    """A run for a person or a program, all plain values but bytes where `full`."""
    run, listed = builtins(record), [builtins(step) for step in steps]
    if not full:
        for one in (run, *listed):
            for name in one.keys() & {"inputs", "output", "outputs", "more"}:
                one[name] = shortened(one[name], LOOK_CHARS)
    return {"run": run, "steps": listed}


def builtins(record: RunRecord | StepRecord) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(bytes,))
    return plain
