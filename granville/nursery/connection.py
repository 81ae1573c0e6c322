"""One client's connection to the kernel: requests in, replies out."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import trio

from granville import __version__
from granville.doors.address import parse_callback
from granville.doors.conversation import Conversation
from granville.doors.peer import Peer
from granville.doors.senders import Senders
from granville.errors import BadRequest, Cancelled, GranvilleError, Internal, Unsupported
from granville.nursery.callbacks import CallbackRoute, JobDelivery, Route, deliver, held_size, merged
from granville.nursery.desk import Desk
from granville.nursery.recordings import recording_bytes
from granville.scheduling.job import ClientKey, Job
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


class Connection(Conversation):
    """What clients ask of the kernel, and its answers."""

    def __init__(self, stream: trio.abc.Stream, peer: Peer, desk: Desk, senders: Senders) -> None:
        super().__init__(stream, peer, desk.config, desk.cork)
        self._desk = desk
        self._senders = senders
        self._routes: dict[Job, _InlineRoute] = {}
        self._pending = 0
        """Control operations that are answered later."""

    def is_due(self) -> bool:
        return bool(self._routes or self._pending)

    def abandon(self) -> None:
        for job in list(self._routes):
            self._desk.abandon(job)

    def release(self) -> None:
        for route in list(self._routes.values()):
            if not self.congested:
                route.release()

    def handle(self, value: object, size: int) -> None:
        """One message, answered at once or made a job."""
        try:
            message, unknown = parse_message(value)
        except BadRequest as error:
            self.refuse(error.id, error, error.rid)
            return
        self._desk.counters.unknown_fields += unknown
        rid = message.rid if isinstance(message, Control) else None
        try:
            if isinstance(message, Control):
                self._answer(message)
            else:
                self._accept(message, size)
        except GranvilleError as error:
            self.refuse(message.id, error)
        except Exception:
            log.exception("a request failed")
            self.refuse(message.id, Internal("the daemon failed on this request"), rid)

    def refuse(self, id: str | None, error: GranvilleError, rid: str | int | None = None) -> None:
        self._desk.counters.rejected += 1
        self.push(encode(error_reply(id, error, rid)))

    def _answer(self, message: Control) -> None:
        if message.op in ("load", "unload"):
            pool = self._desk.pool
            assert pool is not None
            if self._peer.is_tcp:  # whoever has an account here can reach it, and a path is a file of this user
                self.refuse(message.id, Unsupported("op: load and unload are for the Unix socket"), message.rid)
                return
            self._pending += 1
            pool.ask(message, partial(self._answer_late, message))
            return
        if message.op == "warm":
            self._pending += 1
            self._desk.warming.ask(message, partial(self._answer_late, message))
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
        self.settled()

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
        job = self._desk.accept(request, size, self._client(request), delivery, self._file_bytes(request))
        self._accepted = True
        self._follow(job, route)
        self.push(encode(Ack(job.id)))
        self._senders.nursery.start_soon(deliver, self._desk, job, delivery)
        self._desk.channel.dispatch()

    def _file_bytes(self, request: Request) -> int:
        """Of the file that a request names, 0 for none. Raises BadRequest for one that it may not name."""
        if request.audio_path is None:
            return 0
        if self._peer.is_tcp:  # whoever has an account here can reach it, and a path is a file of this user
            raise BadRequest("audio_path: a file can be named over the Unix socket alone; give its bytes in `audio`")
        return recording_bytes(request.audio_path, self._peer.uid)

    def max_message_bytes(self) -> int:
        return self._desk.max_message_bytes()

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
            if begins_to_stream and job.so_far and job.outcome is None:
                delivery.delta(job.so_far)
            return
        delivery.route.detach()
        self._follow(job, route)
        delivery.redirect(route, job.so_far)

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
            self.settled()


TOO_SLOW = Cancelled("the reader is too slow: its unread answer grew over the bound")


class _InlineRoute:
    """A job's messages on the connection that asked for it, whose writer does what `finish` could not."""

    delivers_at_once = True

    def __init__(self, connection: Connection, id: str) -> None:
        self._connection = connection
        self._id = id
        self._held: list[str | bytes] = []
        self._held_size = 0
        self.job: Job | None = None

    def delta(self, delta: str | bytes) -> None:
        if not self._held and not self._connection.congested:
            self._connection.push(encode(Delta(self._id, delta)))
            return
        self._held.append(delta)
        self._held_size += held_size(delta)
        if self._held_size > self._connection._bounds.max_outbox_bytes and self.job is not None:
            self._connection._desk.end(self.job, TOO_SLOW)

    def release(self) -> None:
        """Send what was held back, as one delta."""
        if self._held:
            self._connection.push(encode(Delta(self._id, merged(self._held))))
            self._held.clear()
            self._held_size = 0

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
