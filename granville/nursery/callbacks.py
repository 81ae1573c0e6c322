"""Deliveries: each job's messages on their way, and the deadline that the job has.

A job has one delivery task from its admission to the end of its delivery. A callback gets one connection a job,
opened when its first message is ready. One message at a time is under way to a callback's address, and
`max_senders` in all, so that a callback which does not read holds up nobody but itself.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol
from weakref import WeakValueDictionary

import trio
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from granville.config import ServeConfig
from granville.nursery.address import Address
from granville.nursery.desk import Counters, Desk
from granville.nursery.transport import HttpTransport
from granville.scheduling.job import Job
from granville.wire.messages import Delta, ErrorReply, Result, encode

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 5.0
RETRIED = frozenset(
    {errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN, errno.EAGAIN}
    | {errno.EMFILE, errno.ENFILE}  # it is we who are short of open files
)


class Route(Protocol):
    """The way of one job's messages. Only `flush` waits, and need not be called where `finish` has done it all."""

    delivers_at_once: bool

    def delta(self, text: str) -> None: ...

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

    def delta(self, text: str) -> None:
        if self.stream:
            self.route.delta(text)

    def finish(self, reply: Result | ErrorReply) -> None:
        self._reply = reply
        self.route.finish(reply)
        self.ended.set()

    def redirect(self, route: Route, so_far: str) -> None:
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


class Refused(Exception):
    """A callback answered, and does not want the message."""


class _Stream(Protocol):
    async def send_all(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


class _HttpStream:
    """One POST a message."""

    def __init__(self, url: str, transport: HttpTransport, timeout_s: float) -> None:
        self._url, self._transport, self._timeout_s = url, transport, timeout_s

    async def send_all(self, data: bytes) -> None:
        try:
            status = await self._transport.post(self._url, data, self._timeout_s)
        except ConnectionError as error:
            raise OSError(errno.ECONNREFUSED, str(error)) from error
        if status == 429 or status >= 500:
            raise OSError(errno.ECONNREFUSED, f"status {status}")
        if not 200 <= status < 300:
            raise Refused(f"status {status}")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Senders:
    """All callback connections of the daemon, and their bounds."""

    def __init__(
        self, config: ServeConfig, counters: Counters, nursery: trio.Nursery, transport: HttpTransport
    ) -> None:
        self.config = config
        self.counters = counters
        self.nursery = nursery
        self._transport = transport
        self._all = trio.Semaphore(config.max_senders)
        self._turns: WeakValueDictionary[Address, trio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, address: Address) -> AsyncIterator[None]:
        """The right to have one message under way to this address."""
        lock = self._turns.setdefault(address, trio.Lock())
        async with lock, self._all:
            self.counters.senders += 1
            try:
                yield
            finally:
                self.counters.senders -= 1

    async def connect(self, address: Address) -> _Stream:
        if address.scheme == "http":
            return _HttpStream(address.where, self._transport, self.config.callback_stall_s)
        if address.scheme == "unix":
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            where: object = address.where
        else:
            sock = trio.socket.socket(trio.socket.AF_INET6 if ":" in address.where else trio.socket.AF_INET)
            where = (address.where, address.port)
        try:
            await sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


class CallbackRoute:
    """One job's messages to its callback."""

    delivers_at_once = False

    def __init__(self, senders: Senders, address: Address, id: str, too_slow: Callable[[], None]) -> None:
        self.address = address
        self._senders = senders
        self._id = id
        self._too_slow = too_slow
        self._stream: _Stream | None = None
        self._deltas: list[str] = []
        self._held_chars = 0
        self._lost = False
        self._reply: Result | ErrorReply | None = None
        self._wake = trio.Event()
        self._streamed: trio.Event | None = None
        """Set when the task that sends deltas has ended; None when there is none."""

    def delta(self, text: str) -> None:
        if self._lost:
            return
        self._held_chars += len(text)
        if self._held_chars > self._senders.config.max_outbox_bytes:
            self._too_slow()
            return
        self._deltas.append(text)
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
        counters = self._senders.counters
        if await self._send(encode(self._reply)):
            counters.delivered += 1
        else:
            counters.undelivered += 1
        await self._hang_up()

    async def _send_deltas(self, ended: trio.Event) -> None:
        """Started by: the first delta. Ends when: the job has ended and its deltas are sent, or the callback is
        lost; the result then still tries. Cancelled by: the kernel's end."""
        try:
            while not self._lost and (self._deltas or self._reply is None):
                await self._wake.wait()
                self._wake = trio.Event()
                text = "".join(self._deltas)
                self._deltas.clear()
                if text and not await self._send(encode(Delta(self._id, text))):
                    self._lost = True
                self._held_chars -= len(text)
            if self._lost:
                await self._hang_up()
        finally:
            ended.set()

    async def _send(self, message: bytes) -> bool:
        """Send one message, again and again while nobody listens, until `delivery_ttl_s` has passed."""
        give_up_at = trio.current_time() + self._senders.config.delivery_ttl_s
        attempts = AsyncRetrying(
            sleep=trio.sleep,
            retry=retry_if_exception(_retryable),
            wait=wait_random_exponential(multiplier=FIRST_BACKOFF_S, min=FIRST_BACKOFF_S / 2, max=MAX_BACKOFF_S),
            stop=lambda state: trio.current_time() + state.upcoming_sleep > give_up_at,
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    await self._try(message)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, Refused) as problem:
            log.warning("undelivered id=%s callback=%s problem=%s", self._id, self.address, problem)
            return False
        except Exception:  # whatever a transport makes of a strange address or peer, it costs this message alone
            log.exception("undelivered id=%s callback=%s", self._id, self.address)
            return False
        return True

    async def _try(self, message: bytes) -> None:
        delivered = False
        try:
            async with self._senders.turn(self.address):
                with trio.fail_after(self._senders.config.callback_stall_s):
                    if self._stream is None:
                        self._stream = await self._senders.connect(self.address)
                    await self._stream.send_all(message)
            delivered = True
        finally:
            if not delivered:
                await self._hang_up()

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


def _retryable(problem: BaseException) -> bool:
    """Nobody listens yet, or the listener's backlog is full: a Unix connect then succeeds and the write fails. Or
    there is no open file left for a connection."""
    if isinstance(problem, trio.BrokenResourceError) and problem.__cause__ is not None:
        problem = problem.__cause__
    return isinstance(problem, OSError) and problem.errno in RETRIED
