"""The SDK for programs on Trio that have `crucible serve` run their workflows.

async with connect_crucible() as crucible:
    async with crucible.run(path="/home/me/voice.yaml", inputs={"audio": sound}) as run:
        async for event in run:
            print(event)
        print(run.outputs["answer"])
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from granville.client.address import dial
from granville.client.link import Link, attended
from granville.config import DEFAULT_CRUCIBLE_SOCKET
from granville.crucible import messages
from granville.crucible.messages import asked, read_error, read_event
from granville.crucible.running.events import DeltaEvent, Event
from granville.crucible.workflow.model import Workflow
from granville.errors import BadRequest, GranvilleError
from granville.wire.messages import encode

log = logging.getLogger(__name__)

GIVE_UP_S = 2.0
"""How long leaving a run early waits for the daemon to have cancelled it."""
MAX_UNREAD_EVENTS = 10_000
"""That wait for their reader; a reader further behind loses the oldest deltas, and then is told so."""


class FollowedRun:
    """A run that is followed: iterate it for its events, or `finish` for its outputs."""

    def __init__(self) -> None:
        self.id: str | None = None
        """Known when it is accepted."""
        self._unread: deque[Event] = deque()
        self._end: dict[str, Any] | GranvilleError | None = None
        self._news = trio.lowlevel.ParkingLot()

    async def accepted(self) -> str:
        """Wait for the ACK; the run's id. Raises the error if it is refused."""
        await trio.lowlevel.checkpoint()
        while self.id is None and self._end is None:
            await self._news.park()
        if self.id is None:
            self.outputs  # noqa: B018 - raises what the daemon refused with
        assert self.id is not None
        return self.id

    async def finish(self) -> dict[str, Any]:
        """Wait for the end, passing over the events. Raises RunFailed, Cancelled, Interrupted, or what it was refused
        with."""
        await trio.lowlevel.checkpoint()
        while self._end is None:
            self._unread.clear()
            await self._news.park()
        return self.outputs

    @property
    def outputs(self) -> dict[str, Any]:
        """Of a run that has ended. Raises what it ended with instead."""
        if self._end is None:
            raise RuntimeError("the run has not ended; iterate it to its end or await finish()")
        if isinstance(self._end, GranvilleError):
            raise self._end
        return self._end

    def __aiter__(self) -> FollowedRun:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        while not self._unread:
            if self._end is not None:
                self.outputs  # noqa: B018 - a run that failed raises here, after its events
                raise StopAsyncIteration
            await self._news.park()
        return self._unread.popleft()

    def accept(self, id: str) -> None:
        self.id = id
        self._news.unpark_all()

    def take(self, event: Event) -> None:
        if self._end is None:
            self._unread.append(event)
            if len(self._unread) > MAX_UNREAD_EVENTS:
                self._make_room()
            self._news.unpark_all()

    def end(self, end: dict[str, Any] | GranvilleError) -> None:
        if self._end is None:
            self._end = end
            self._news.unpark_all()

    def _make_room(self) -> None:
        kept = [event for event in self._unread if not isinstance(event, DeltaEvent)]
        if len(kept) > MAX_UNREAD_EVENTS:
            self.end(BadRequest(f"the run was not read: more than {MAX_UNREAD_EVENTS} events wait"))
        self._unread = deque(kept)


class CrucibleClient(Link):
    """Made by `connect_crucible`. Its methods may be called from many tasks at once; each raises the GranvilleError
    that the daemon answered with, or ConnectionLost."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self._asked: dict[str, FollowedRun] = {}
        """By `rid`, until the ACK."""
        self._followed: dict[str, FollowedRun] = {}
        """By the run's id."""
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def run(
        self, workflow: Workflow | Mapping[str, Any] | str | None = None, inputs: Mapping[str, Any] | None = None, *,
        path: str | None = None, id: str | None = None, events: bool = True, detached: bool = False,
    ) -> AsyncIterator[FollowedRun]:  # fmt: skip
        """Start a run of a workflow (an object, a map, YAML), or of the file at a path. Leaving the body before its
        end cancels it, unless it is `detached`: then it goes on without anybody. With the id of a run that is there
        already, of the same workflow and inputs, that run is followed."""
        given: Any = msgspec.to_builtins(workflow) if isinstance(workflow, Workflow) else workflow
        order = messages.Run(
            workflow=given, path=path, inputs=dict(inputs or {}), id=id, stream=events, detached=detached
        )
        async with self._follow(order) as run:
            try:
                yield run
            finally:
                if not detached and run._end is None:
                    await self._give_up(run)

    @asynccontextmanager
    async def resume(self, id: str, *, retry: str | None = None, events: bool = True) -> AsyncIterator[FollowedRun]:
        """Go on with a run that was interrupted or has failed. It goes on when the body is left."""
        async with self._follow(messages.Resume(id=id, retry=retry, stream=events, detached=True)) as run:
            yield run

    @asynccontextmanager
    async def events(self, id: str) -> AsyncIterator[FollowedRun]:
        """Follow a run from its beginning, whoever has started it. Raises, on `accepted`, UnknownRun."""
        async with self._follow(messages.Events(id=id)) as run:
            yield run

    async def runs(self, limit: int = 50, state: Any = None) -> list[dict[str, Any]]:
        """The latest first: `id`, `workflow`, `state`, `created_at`, ..."""
        return list((await self.ask(asked(messages.Runs(limit=limit, state=state))))["runs"])

    async def show(self, id: str, *, full: bool = False) -> dict[str, Any]:
        """`run` and its `steps`; values shortened unless `full`. Raises UnknownRun."""
        return await self.ask(asked(messages.Show(id=id, full=full)))

    async def cancel(self, id: str) -> str:
        """End a run. Its state then. Raises UnknownRun."""
        return str((await self.ask(asked(messages.Cancel(id=id))))["state"])

    async def status(self) -> dict[str, Any]:
        return await self.ask(asked(messages.Status()))

    async def ping(self) -> str:
        """The daemon's version."""
        return str((await self.ask(asked(messages.Ping())))["version"])

    @asynccontextmanager
    async def _follow(self, message: messages.Asked) -> AsyncIterator[FollowedRun]:
        rid = f"f{next(self._numbers)}"
        run = self._asked[rid] = FollowedRun()
        try:
            await self.send(encode({**asked(message), "rid": rid}))
            yield run
        finally:
            self._asked.pop(rid, None)
            if self._followed.get(run.id or "") is run:
                del self._followed[run.id or ""]

    async def _give_up(self, run: FollowedRun) -> None:
        with trio.move_on_after(GIVE_UP_S, shield=True):
            try:
                await self.cancel(await run.accepted())
            except GranvilleError as error:
                log.debug("nothing to cancel id=%s reason=%r", run.id, error)

    def dispatch(self, value: object) -> None:
        if not isinstance(value, dict):
            raise BadRequest("a reply must be a map")
        rid, id = value.get("rid"), value.get("id")
        asked_for = self._asked.get(rid) if isinstance(rid, str) else None
        if asked_for is not None and isinstance(rid, str):
            del self._asked[rid]
            if "error" in value:
                asked_for.end(read_error(value))
            else:
                asked_for.accept(str(id))
                self._followed[str(id)] = asked_for
        elif rid is not None:
            del value["rid"]
            self.settle(rid, read_error(value) if "error" in value else value)
        elif id is None:
            raise read_error(value)
        else:
            run = self._followed.get(id) if isinstance(id, str) else None
            if run is None:
                log.debug("message for no one id=%s", id)
            elif "event" in value:
                run.take(read_event(value))
            else:
                run.end(value["outputs"] if "outputs" in value else read_error(value))

    def drop(self, lost: GranvilleError) -> None:
        for run in [*self._asked.values(), *self._followed.values()]:
            run.end(lost)

    async def wind_up(self, lost: GranvilleError) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def connect_crucible(address: str = DEFAULT_CRUCIBLE_SOCKET) -> AsyncIterator[CrucibleClient]:
    """A connection to the daemon at a Unix socket's path or `tcp://host:port`, for the length of the body.

    Raises NoDaemon when nothing listens there.
    """
    async with serve_crucible(await dial(address, "crucible serve", DEFAULT_CRUCIBLE_SOCKET)) as client:
        yield client


@asynccontextmanager
async def serve_crucible(stream: trio.abc.Stream) -> AsyncIterator[CrucibleClient]:
    """A client on any stream, which is closed at the end."""
    async with attended(CrucibleClient(stream)) as client:
        yield client
