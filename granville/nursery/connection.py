"""One client's connection: requests in, replies out, in any number and any order."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import trio

from granville import __version__
from granville.config import ServeConfig
from granville.errors import BadRequest, Cancelled, FramingLost, GranvilleError, Internal, TooLarge, Unsupported
from granville.nursery.address import parse_callback
from granville.nursery.callbacks import CallbackRoute, JobDelivery, Route, Senders, deliver
from granville.nursery.desk import Desk
from granville.nursery.outbox import Outbox
from granville.scheduling.job import ClientKey, Job
from granville.wire.framing import FrameReader
from granville.wire.messages import (
    Ack,
    Control,
    Delta,
    ErrorReply,
    Request,
    Result,
    encode,
    error_reply,
    parse_message,
)

log = logging.getLogger(__name__)

READ_BYTES = 65_536
TURN_MESSAGES = 64
"""Of one client, handled before the others get their turn."""
FLOOD_PAUSE_S = 0.005
"""After a whole turn that brought no job: a client that floods the daemon with requests it refuses is read more slowly,
12 800 a second, and the models keep their cores."""
LINGER_S = 2.0
"""How long a client may go on sending after its stream became unreadable."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end."""

    sock: trio.socket.SocketType | None
    """None in tests with memory streams."""

    @property
    def is_tcp(self) -> bool:
        return self.sock is not None and self.sock.family != socket.AF_UNIX

    @cached_property
    def key(self) -> tuple[str, str]:
        """(user, program), as far as the kernel tells."""
        if self.sock is None or self.is_tcp or not hasattr(socket, "SO_PEERCRED"):
            return "tcp" if self.is_tcp else "local", "unknown"
        pid, uid, _ = struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            program = "unknown"
        return str(uid), program

    async def hung_up(self, *, at_end_of_file: bool) -> None:
        """Wait until the client has gone altogether. One that has only shut down its sending side still reads, on a
        Unix socket; on TCP the two look alike, and end of file is gone."""
        if self.sock is None or self.is_tcp or not hasattr(select, "epoll"):
            if at_end_of_file:
                return
            await trio.sleep_forever()
        try:
            watch = select.epoll()
        except OSError as error:  # no open file is left: the first write to a client that has gone will tell
            log.warning("cannot watch for a hang-up error=%s", error.strerror)
            await trio.sleep_forever()
        with watch:
            watch.register(self.sock, 0)  # no event asked for: EPOLLHUP always comes
            await trio.lowlevel.wait_readable(watch.fileno())


class Connection:
    def __init__(self, stream: trio.abc.Stream, peer: Peer, desk: Desk, senders: Senders) -> None:
        self._stream = stream
        self._peer = peer
        self._desk = desk
        self._senders = senders
        self._config: ServeConfig = desk.config
        fd = None if peer.sock is None else peer.sock.fileno()
        self._outbox = Outbox(stream, fd, desk.cork, self._config.write_stall_s)
        self._routes: dict[Job, _InlineRoute] = {}
        self._all_answered = trio.Event()
        self._reading = trio.CancelScope()
        self._accepted = False
        """Whether the turn brought a job."""
        self._pending = 0
        """Control operations that are answered later."""

    async def run(self) -> None:
        """Started by: the listener. Ends when: the client is gone, or has said all and got its answers. Cancelled
        by: the kernel's end. Never raises for anything that a client does."""
        try:
            # A nursery for the reader and the writer: a client that is slow to read does not stop us from reading.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                with self._reading:
                    await self._serve()
                self._outbox.close()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("client went away")
        except* Exception:
            log.exception("a connection failed")
        finally:
            self._outbox.abandon()
            self._abandon_jobs()

    def hang_up(self) -> None:
        """Read no more; send what is there and close."""
        self._reading.cancel()

    def push(self, message: bytes) -> None:
        self._outbox.push(message)

    @property
    def congested(self) -> bool:
        return self._outbox.congested

    async def _serve(self) -> None:
        """Read to the end, then stay for the answers that are still due."""
        lost: GranvilleError | None = None
        try:
            await self._read()
        except (FramingLost, TooLarge) as error:
            lost = error
            self._refuse(None, error)
        # Whichever comes first: the last answer, or the client's end.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_until_hung_up, nursery.cancel_scope, lost is None)
            if lost is not None:
                await self._discard()
            while self._routes or self._pending:
                self._all_answered = trio.Event()
                await self._all_answered.wait()
            nursery.cancel_scope.cancel()

    async def _wait_until_hung_up(self, scope: trio.CancelScope, at_end_of_file: bool) -> None:
        """Started by: `_serve`, when reading is over. Ends when: the client has gone. Cancelled by: the last answer."""
        await self._peer.hung_up(at_end_of_file=at_end_of_file)
        self._abandon_jobs()
        scope.cancel()

    async def _discard(self) -> None:
        """Take what a client still sends after its stream became unreadable, so that it gets to read why."""
        with trio.move_on_after(LINGER_S):
            while await self._stream.receive_some(READ_BYTES):
                pass

    def _abandon_jobs(self) -> None:
        for job in list(self._routes):
            self._desk.abandon(job)

    async def _read(self) -> None:
        """Until end of file. Raises FramingLost or TooLarge when nothing more can be read."""
        reader = FrameReader(self._config.max_request_bytes)
        part_since = 0.0
        while True:
            if reader.pending:
                with trio.move_on_at(part_since + self._config.part_message_s) as scope:
                    data = await self._stream.receive_some(READ_BYTES)
                if scope.cancelled_caught:
                    raise FramingLost(
                        f"a message was begun and not finished within {self._config.part_message_s:g} s; "
                        f"{reader.pending} bytes of it came"
                    )
            else:
                data = await self._stream.receive_some(READ_BYTES)
                part_since = trio.current_time()
            if not data:
                reader.close()
                return
            values = reader.feed(data)
            handled = TURN_MESSAGES
            while handled == TURN_MESSAGES:
                handled = self._take_turn(values, reader)
                if handled:
                    part_since = trio.current_time()
                if self.congested:
                    await self._outbox.room()
                    part_since = trio.current_time()  # while we did not read, the client could not finish its message
                elif handled == TURN_MESSAGES:
                    await trio.sleep(0 if self._accepted else FLOOD_PAUSE_S)

    def _take_turn(self, values: Iterator[object], reader: FrameReader) -> int:
        """Handle the next messages, and say how many: one read can bring tens of thousands of small ones, and the
        other clients are not to wait for all of them."""
        handled = 0
        self._accepted = False
        with self._desk.cork:
            for value in islice(values, TURN_MESSAGES):
                self._handle(value, reader.last_bytes)
                handled += 1
        return handled

    async def _write(self) -> None:
        """Started by: `run`. Ends when: reading has ended and everything is sent. Cancelled by: a client that is
        gone, or takes nothing for `write_stall_s`, which counts as gone."""
        while await self._outbox.drain():
            for route in list(self._routes.values()):
                if not self.congested:
                    route.release()

    def _handle(self, value: object, size: int) -> None:
        """One message, answered at once or made a job."""
        try:
            message, unknown = parse_message(value)
        except BadRequest as error:
            self._refuse(error.id, error, error.rid)
            return
        self._desk.counters.unknown_fields += unknown
        rid = message.rid if isinstance(message, Control) else None
        try:
            if isinstance(message, Control):
                self._answer(message)
            else:
                self._accept(message, size)
        except GranvilleError as error:
            self._refuse(message.id, error)
        except Exception:
            log.exception("a request failed")
            self._refuse(message.id, Internal("the daemon failed on this request"), rid)

    def _refuse(self, id: str | None, error: GranvilleError, rid: str | int | None = None) -> None:
        self._desk.counters.rejected += 1
        self.push(encode(error_reply(id, error, rid)))

    def _answer(self, message: Control) -> None:
        if message.op in ("load", "unload"):
            pool = self._desk.pool
            assert pool is not None
            if self._peer.is_tcp:  # whoever has an account here can reach it, and a path is a file of this user
                self._refuse(message.id, Unsupported("op: load and unload are for the Unix socket"), message.rid)
                return
            self._pending += 1
            pool.ask(message, partial(self._answer_late, message))
            return
        try:
            reply = control(self._desk, message)
        except GranvilleError as error:
            self.push(encode(error_reply(message.id, error, message.rid)))
            return
        self.push(encode(reply if message.rid is None else {**reply, "rid": message.rid}))

    def _answer_late(self, message: Control, outcome: dict[str, Any] | GranvilleError) -> None:
        """The reply to what took its time."""
        self._pending -= 1
        if isinstance(outcome, GranvilleError):
            self.push(encode(error_reply(message.id, outcome, message.rid)))
        else:
            self.push(encode(outcome if message.rid is None else {**outcome, "rid": message.rid}))
        self._all_answered.set()

    def _accept(self, request: Request, size: int) -> None:
        route: Route
        if request.callback is None:
            route = _InlineRoute(self, request.id)
        else:
            address = parse_callback(request.callback, over_tcp=self._peer.is_tcp)
            route = CallbackRoute(self._senders, address, request.id, lambda: self._too_slow(request.id))
        live = self._desk.admission.same(request)
        if live is not None:
            self._repeat(live, request, route)
            return
        delivery = JobDelivery(route, stream=request.stream)
        job = self._desk.accept(request, size, self._client(request), delivery)
        self._accepted = True
        self._follow(job, route)
        self.push(encode(Ack(job.id)))
        self._senders.nursery.start_soon(deliver, self._desk, job, delivery)
        self._desk.channel.dispatch()

    def _repeat(self, job: Job, request: Request, route: Route) -> None:
        """The same request again under a live id: the ACK again, and the answer to the newest callback."""
        self.push(encode(Ack(job.id)))
        delivery = job.delivery
        assert isinstance(delivery, JobDelivery)
        begins_to_stream = request.stream and not delivery.stream
        delivery.stream = request.stream
        job.streams |= request.stream
        here = job in self._routes if isinstance(route, _InlineRoute) else _same_callback(delivery.route, route)
        if here:
            if begins_to_stream and job.text and job.outcome is None:
                delivery.delta("".join(job.text))
            return
        delivery.route.detach()
        self._follow(job, route)
        delivery.redirect(route, "".join(job.text))

    def _too_slow(self, id: str) -> None:
        self._desk.end(self._desk.admission.find(id), TOO_SLOW)

    def _follow(self, job: Job, route: Route) -> None:
        if isinstance(route, _InlineRoute):
            self._routes[job] = route
            route.job = job

    def _client(self, request: Request) -> ClientKey:
        user, program = self._peer.key
        return user, request.client or program

    def unfollow(self, job: Job | None) -> None:
        if job is not None and self._routes.pop(job, None) is not None and not self._routes:
            self._all_answered.set()


TOO_SLOW = Cancelled("the reader is too slow: its unread answer grew over the bound")


class _InlineRoute:
    """A job's messages on the connection that asked for it, whose writer does what `finish` could not."""

    delivers_at_once = True

    def __init__(self, connection: Connection, id: str) -> None:
        self._connection = connection
        self._id = id
        self._held: list[str] = []
        self._held_chars = 0
        self.job: Job | None = None

    def delta(self, text: str) -> None:
        if not self._held and not self._connection.congested:
            self._connection.push(encode(Delta(self._id, text)))
            return
        self._held.append(text)
        self._held_chars += len(text)
        if self._held_chars > self._connection._config.max_outbox_bytes and self.job is not None:
            self._connection._desk.end(self.job, TOO_SLOW)

    def release(self) -> None:
        """Send what was held back, as one delta."""
        if self._held:
            self._connection.push(encode(Delta(self._id, "".join(self._held))))
            self._held.clear()
            self._held_chars = 0

    def finish(self, reply: Result | ErrorReply) -> None:
        self.release()
        self._connection.push(encode(reply))
        self._connection.unfollow(self.job)
        if self.job is not None:  # at once: a client may use the id again as soon as it has read this
            self._connection._desk.forget(self.job)

    def detach(self) -> None:
        self._connection.unfollow(self.job)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


def _same_callback(one: Route, other: Route) -> bool:
    return isinstance(one, CallbackRoute) and isinstance(other, CallbackRoute) and one.address == other.address


def control(desk: Desk, message: Control) -> dict[str, Any]:
    """The reply to a control operation. Raises UnknownJob."""
    if message.op == "models":
        return desk.list_models()
    if message.op == "cancel":
        assert message.id is not None
        return desk.cancel(message.id)
    if message.op == "drain":
        return desk.drain()
    if message.op == "ping":
        return {"ok": True, "version": __version__}
    return desk.status() if message.id is None else desk.job_status(message.id)
