"""Deliveries: each job's messages on their way, and the deadline that the job has.

A job has one delivery task from its admission to the end of its delivery. A callback gets one connection a job,
opened when its first message is ready.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import trio

from granville.doors.address import Address
from granville.doors.senders import Line, Senders
from granville.nursery.desk import Desk
from granville.scheduling.job import Job
from granville.wire.messages import Delta, ErrorReply, Result, encode


class Route(Protocol):
    """The way of one job's messages. Only `flush` waits, and need not be called where `finish` has done it all."""

    delivers_at_once: bool

    def delta(self, delta: str | bytes) -> None: ...

    def finish(self, reply: Result | ErrorReply) -> None: ...

    def detach(self) -> None:
        """The job's messages go another way from now on."""

    async def flush(self) -> None:
        """Return when the terminal message is delivered, or never will be."""


class JobDelivery:
    """A job's delivery: remembers the terminal message, and goes another way when the client asks again."""

    def __init__(self, route: Route, *, stream: bool) -> None:
        self.route = route
        self.stream = stream
        self.ended = trio.Event()
        self._reply: Result | ErrorReply | None = None
        self._flushing: trio.CancelScope | None = None

    def delta(self, delta: str | bytes) -> None:
        if self.stream:
            self.route.delta(delta)

    def finish(self, reply: Result | ErrorReply) -> None:
        self._reply = reply
        self.route.finish(reply)
        self.ended.set()

    def redirect(self, route: Route, so_far: str | bytes) -> None:
        """The old route being detached, send by another: the answer `so_far` if it is streamed, then what comes."""
        self.route = route
        if self._flushing is not None:
            self._flushing.cancel()
        if self._reply is not None:
            route.finish(self._reply)
        elif self.stream and so_far:
            route.delta(so_far)

    async def flush(self) -> None:
        route = None
        while route is not self.route:
            route = self.route
            if not route.delivers_at_once:
                with trio.CancelScope() as self._flushing:
                    await route.flush()


async def deliver(desk: Desk, job: Job, delivery: JobDelivery) -> None:
    """Started by: the connection that accepted the job. Ends when: the job's terminal message is delivered or given
    up. Cancelled by: the kernel's end. Holds the job's one deadline, over waiting and running."""
    with trio.CancelScope(deadline=job.deadline):
        await delivery.ended.wait()
    desk.expire(job)
    await delivery.flush()
    desk.forget(job)


class CallbackRoute:
    """One job's messages to its callback."""

    delivers_at_once = False

    def __init__(self, senders: Senders, address: Address, id: str, too_slow: Callable[[], None]) -> None:
        self.address = address
        self._line = Line(senders, address, id)
        self._senders = senders
        self._id = id
        self._too_slow = too_slow
        self._deltas: list[str | bytes] = []
        self._held_size = 0
        self._lost = False
        self._reply: Result | ErrorReply | None = None
        self._wake = trio.Event()
        self._streamed: trio.Event | None = None
        """Set when the task that sends deltas has ended; None when there is none."""

    def delta(self, delta: str | bytes) -> None:
        if self._lost:
            return
        self._held_size += held_size(delta)
        if self._held_size > self._senders.bounds.max_outbox_bytes:
            self._too_slow()
            return
        self._deltas.append(delta)
        self._wake.set()
        if self._streamed is None:
            self._streamed = trio.Event()
            self._senders.nursery.start_soon(self._send_deltas, self._streamed)

    def finish(self, reply: Result | ErrorReply) -> None:
        self._reply = reply
        self._wake.set()

    def detach(self) -> None:
        self._lost = True
        self._wake.set()

    async def flush(self) -> None:
        assert self._reply is not None
        if self._streamed is not None:
            await self._streamed.wait()
        tally = self._senders.tally
        if await self._line.send(encode(self._reply)):
            tally.delivered += 1
        else:
            tally.undelivered += 1
        await self._line.hang_up()

    async def _send_deltas(self, ended: trio.Event) -> None:
        """Started by: the first delta. Ends when: the job has ended and its deltas are sent, or the callback is
        lost; the result then still tries. Cancelled by: the kernel's end."""
        try:
            while not self._lost and (self._deltas or self._reply is None):
                await self._wake.wait()
                self._wake = trio.Event()
                if not self._deltas:
                    continue
                delta = merged(self._deltas)
                self._deltas.clear()
                if not await self._line.send(encode(Delta(self._id, delta))):
                    self._lost = True
                self._held_size -= held_size(delta)
            if self._lost:
                await self._line.hang_up()
        finally:
            ended.set()


def merged(deltas: list[Any]) -> str | bytes:
    """One delta of several, which are all text or all bytes."""
    empty: Any = "" if isinstance(deltas[0], str) else b""
    joined: str | bytes = empty.join(deltas)
    return joined


def held_size(delta: str | bytes) -> int:
    """What a delta takes that waits for its reader. Sound is kept whole for the result anyway, under its own bound; a
    player that reads no faster than it plays may be minutes behind."""
    return len(delta) if isinstance(delta, str) else 0
