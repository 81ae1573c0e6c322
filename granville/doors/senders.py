"""Messages to addresses that clients have named: tried again while nobody listens, a bounded number at once.

One message at a time is under way to an address, and `max_senders` in all, so that a callback which does not read holds
up nobody but itself.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol
from weakref import WeakValueDictionary

import trio
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from granville.doors.address import Address
from granville.doors.bounds import Bounds, Tally
from granville.doors.transport import HttpTransport

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 5.0
RETRIED = frozenset(
    {errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN, errno.EAGAIN}
    | {errno.EMFILE, errno.ENFILE}  # it is we who are short of open files
)


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

    def __init__(self, bounds: Bounds, tally: Tally, nursery: trio.Nursery, transport: HttpTransport) -> None:
        self.bounds = bounds
        self.tally = tally
        self.nursery = nursery
        self._transport = transport
        self._all = trio.Semaphore(bounds.max_senders)
        self._turns: WeakValueDictionary[Address, trio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, address: Address) -> AsyncIterator[None]:
        """The right to have one message under way to this address."""
        lock = self._turns.setdefault(address, trio.Lock())
        async with lock, self._all:
            self.tally.senders += 1
            try:
                yield
            finally:
                self.tally.senders -= 1

    async def connect(self, address: Address) -> _Stream:
        if address.scheme == "http":
            return _HttpStream(address.where, self._transport, self.bounds.callback_stall_s)
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


class Line:
    """The messages of one job, or of one run, to one address, over a connection that the first of them opens."""

    def __init__(self, senders: Senders, address: Address, id: str) -> None:
        self.address = address
        self._senders = senders
        self._id = id
        self._stream: _Stream | None = None

    async def send(self, message: bytes) -> bool:
        """Send one message, again and again while nobody listens, until `delivery_ttl_s` has passed: whether it was
        taken."""
        give_up_at = trio.current_time() + self._senders.bounds.delivery_ttl_s
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
                with trio.fail_after(self._senders.bounds.callback_stall_s):
                    if self._stream is None:
                        self._stream = await self._senders.connect(self.address)
                    await self._stream.send_all(message)
            delivered = True
        finally:
            if not delivered:
                await self.hang_up()

    async def hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


def _retryable(problem: BaseException) -> bool:
    """Nobody listens yet, or the listener's backlog is full: a Unix connect then succeeds and the write fails. Or
    there is no open file left for a connection."""
    if isinstance(problem, trio.BrokenResourceError) and problem.__cause__ is not None:
        problem = problem.__cause__
    return isinstance(problem, OSError) and problem.errno in RETRIED
