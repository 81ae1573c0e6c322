"""One client's connection to `crucible serve`: operations in, replies, events and outputs out."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import Any

import trio

from granville import __version__
from granville.crucible.daemon.deliveries import Deliveries
from granville.crucible.daemon.desk import Desk
from granville.crucible.daemon.following import end_of, events_of
from granville.crucible.messages import (
    Asked,
    Cancel,
    Events,
    Followed,
    Message,
    Ping,
    Resume,
    Run,
    Runs,
    Show,
    Status,
    event_map,
    parse_message,
    refusal,
)
from granville.doors.address import parse_callback
from granville.doors.conversation import Conversation
from granville.doors.peer import Peer
from granville.errors import BadRequest, GranvilleError, Internal, QueueFull, Unsupported
from granville.wire.messages import encode

log = logging.getLogger(__name__)

MAX_UNDER_WAY = 64
"""Operations and runs that one connection waits for."""


class Connection(Conversation):
    def __init__(self, stream: trio.abc.Stream, peer: Peer, desk: Desk, deliveries: Deliveries) -> None:
        super().__init__(stream, peer, desk.config, desk.cork)
        self._desk = desk
        self._deliveries = deliveries
        self._under_way: set[trio.CancelScope] = set()
        self._followed: dict[str, trio.CancelScope] = {}
        """Runs whose messages come here: their ACK is out, and their end is not."""
        self._owned: set[str] = set()
        """Runs that are cancelled when this client goes."""
        self._is_gone = False

    def is_due(self) -> bool:
        return bool(self._under_way)

    def abandon(self) -> None:
        self._is_gone = True
        for scope in self._under_way:
            scope.cancel()
        for id in self._owned:
            self._desk.nursery.start_soon(self._desk.let_go, id, self)
        self._owned.clear()

    def release(self) -> None:
        """Whoever follows a run waits for room by itself."""

    def handle(self, value: object, size: int) -> None:
        try:
            message, unknown = parse_message(value)
        except BadRequest as error:
            self.refuse(error.id, error, error.rid)
            return
        self._desk.counters.unknown_fields += unknown
        if len(self._under_way) >= MAX_UNDER_WAY:
            busy = QueueFull(f"{MAX_UNDER_WAY} operations of this connection are under way", retry_after_ms=1000)
            self.refuse(message.id, busy, message.rid)
            return
        self._accepted = True
        scope = trio.CancelScope()
        self._under_way.add(scope)
        self._desk.nursery.start_soon(self._serve_one, message, scope)

    def refuse(self, id: str | None, error: GranvilleError, rid: str | int | None = None) -> None:
        self._desk.counters.rejected += 1
        self.push(encode(refusal(id, error, rid)))

    async def _serve_one(self, message: Message, scope: trio.CancelScope) -> None:
        """Started by: `handle`. Ends when: all that is due to the message is pushed. Cancelled by: the client that has
        gone, and the daemon's end."""
        try:
            await self._answer(message, scope)
        except GranvilleError as error:
            self.refuse(message.id, error, message.rid)
        except Exception:
            log.exception("an operation failed op=%s", message.op)
            self.refuse(message.id, Internal("the daemon failed on this operation"), message.rid)
        finally:
            self._under_way.discard(scope)
            self.settled()

    async def _answer(self, message: Message, scope: trio.CancelScope) -> None:
        if isinstance(message, Followed):
            await self._follow(message, scope)
            return
        with scope:
            if isinstance(message, Events):
                assert message.id is not None
                await self._desk.check_followable(message.id)
                await self._relay(message.id, message, stream=True)
                return
            reply = await self._reply(message)
            self.push(encode(reply if message.rid is None else {**reply, "rid": message.rid}))

    async def _reply(self, message: Message) -> dict[str, Any]:
        if isinstance(message, Runs):
            return {"runs": await self._desk.list(message.limit, message.state)}
        if isinstance(message, Status):
            return self._desk.status() | await self._desk.health()
        if isinstance(message, Ping):
            return {"ok": True, "version": __version__, "crucible": True}
        assert message.id is not None
        if isinstance(message, Show):
            return await self._desk.show(message.id, full=message.full)
        assert isinstance(message, Cancel)
        return await self._desk.cancel(message.id)

    async def _follow(self, message: Followed, scope: trio.CancelScope) -> None:
        """Start or resume a run, and see its messages home. Not cut short between the two: a run that has begun has
        an owner, or goes on by itself."""
        address = None
        if message.callback is not None:
            address = parse_callback(message.callback, over_tcp=self._peer.is_tcp)
        with trio.CancelScope(shield=True):
            if isinstance(message, Run):
                if message.path is not None and self._peer.is_tcp:
                    raise Unsupported("path: files are named on the Unix socket only; send the workflow itself")
                run = await self._desk.begin(message.workflow, message.path, message.inputs, message.id)
            else:
                assert isinstance(message, Resume)
                run = await self._desk.resume(str(message.id), message.retry)
            if message.detached or address is not None:
                self._desk.hold(run.id, None)
            else:
                self._desk.hold(run.id, self)
                if self._is_gone:  # while the run was begun
                    await self._desk.let_go(run.id, self)
                else:
                    self._owned.add(run.id)
            if address is not None:
                await self._deliveries.add(run.id, str(message.callback), stream=message.stream)
        if address is not None:
            self._ack(run.id, message)
            return
        with scope:
            await self._relay(run.id, message, stream=message.stream)

    def _ack(self, id: str, message: Asked) -> None:
        ack = {"id": id, "status": "accepted"}
        self.push(encode(ack if message.rid is None else {**ack, "rid": message.rid}))

    async def _relay(self, id: str, message: Asked, *, stream: bool) -> None:
        """A run's ACK, its events as fast as the client takes them, and its end. Who asks for them again on this
        connection gets them from the beginning, and no longer as before."""
        if id in self._followed:
            self._followed[id].cancel()
        scope = self._followed[id] = trio.CancelScope()
        self._ack(id, message)
        with scope, self._desk.telling():
            try:
                async with aclosing(events_of(self._desk, id, stream=stream)) as events:
                    async for event in events:
                        await self._outbox.room()
                        self.push(encode(event_map(event)))
                await self._outbox.room()
                self.push(await end_of(self._desk, id))
            except GranvilleError as error:  # of the run now, no longer of the operation
                self.refuse(id, error)
            except Exception:
                log.exception("a run cannot be followed id=%s", id)
                self.refuse(id, Internal("the daemon failed to tell of this run; ask for its events again"))
        if self._followed.get(id) is scope:
            del self._followed[id]
