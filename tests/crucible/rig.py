"""A runner in Trio's time, before a whole kernel in this process whose models are fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from granville.client import Client
from granville.client.connection import serve_client
from granville.crucible.journal.runs import Journal
from granville.crucible.running.runner import Runner, open_runner
from granville.crucible.tools.interface import Call, Tool, Toolbox, ToolFailed
from granville.crucible.workflow.model import Step, Workflow
from granville.doors.peer import Peer
from granville.errors import GranvilleError, NoDaemon
from granville.nursery.connection import Connection
from granville.scheduling.job import Job
from granville.testing.kernel import Kernel
from granville.wire.messages import Control, Request

START_S = 1_800_000_000.0
"""Seconds since 1970 when a test begins."""


def wall_clock() -> float:
    return START_S + trio.current_time()


async def at_once(function: Callable[..., Any], *args: Any) -> Any:
    """In place of a thread: Trio's clock does not wait for those."""
    await trio.lowlevel.checkpoint()
    return function(*args)


class Place:
    """Where Granville is, or is not: the kernel can be exchanged, and its connections cut."""

    def __init__(self, kernel: Kernel | None) -> None:
        self.requests: list[Request] = []
        """What was accepted, in order."""
        self.warmed: list[Control] = []
        self.dialled = 0
        self.kernel: Kernel | None = None
        self.put(kernel)
        self._ends: list[trio.abc.Stream] = []

    def put(self, kernel: Kernel | None) -> None:
        self.kernel = kernel
        if kernel is not None:
            accept = kernel.desk.accept

            def noted(request: Request, *more: Any, **named: Any) -> Job:
                job = accept(request, *more, **named)
                self.requests.append(request)
                return job

            kernel.desk.accept = noted  # type: ignore[method-assign]
            warm = kernel.desk.warming.ask

            def noted_warm(message: Control, reply: Callable[[dict[str, Any] | GranvilleError], None]) -> None:
                self.warmed.append(message)
                warm(message, reply)

            kernel.desk.warming.ask = noted_warm  # type: ignore[method-assign]

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[Client]:
        await trio.lowlevel.checkpoint()
        self.dialled += 1
        if self.kernel is None:
            raise NoDaemon("no daemon is listening here")
        ours, theirs = trio.testing.memory_stream_pair()
        self.kernel.nursery.start_soon(_serve, self.kernel, theirs)
        self._ends.append(theirs)
        async with serve_client(ours) as client:
            yield client

    async def cut(self) -> None:
        """Break all connections."""
        for end in self._ends:
            await trio.aclose_forcefully(end)
        self._ends.clear()


async def _serve(kernel: Kernel, stream: trio.abc.Stream) -> None:
    connection = Connection(stream, Peer(None), kernel.desk, kernel.senders)
    async with stream:
        await connection.run()


class Tools:
    """A toolbox of plain functions."""

    def __init__(self, *tools: Tool) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.calls: list[tuple[str, Mapping[str, Any], Call]] = []

    def find(self, name: str) -> Tool:
        if name not in self.tools:
            raise ToolFailed(f"{name}: no such tool")
        return self.tools[name]

    async def call(self, name: str, arguments: Mapping[str, Any], call: Call) -> Any:
        self.calls.append((name, arguments, call))
        return await self.find(name).function(arguments, call)

    @asynccontextmanager
    async def open(self, workflow: Workflow, folder: Path, allow: tuple[str, ...]) -> AsyncIterator[Toolbox]:
        await trio.lowlevel.checkpoint()
        yield self


def tool(name: str, function: Callable[[Mapping[str, Any], Call], Awaitable[Any]], *, once: bool = False) -> Tool:
    return Tool(name, name, {"type": "object"}, function, once=once)


def runner(
    journal: Journal, place: Place, *, tools: Tools | None = None, **more: Any
) -> AbstractAsyncContextManager[Runner]:
    return open_runner(
        address="/nowhere/granville.sock",
        journal=journal,
        toolbox_for=(tools or Tools()).open,
        clock=wall_clock,
        hop=at_once,
        dial=place.dial,
        **more,
    )


def workflow(*steps: Step, **more: Any) -> Workflow:
    return Workflow(name="test", steps=steps, **more)


def says(id: str, text: Any, **more: Any) -> Step:
    """A step whose model, the fake one, says what it is given."""
    return Step(id=id, model_type="inference", input=text, **more)
