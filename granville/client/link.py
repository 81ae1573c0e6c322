"""A stream of messages to and from a daemon, and the questions that are answered on it."""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import trio
from msgspec import UNSET

from granville.client.background import Background
from granville.errors import ConnectionLost, GranvilleError
from granville.wire.framing import MAX_REPLY_BYTES, FrameReader
from granville.wire.messages import ErrorReply

log = logging.getLogger(__name__)

OUTBOX_MESSAGES = 64
"""Messages that wait for the socket; the next sender waits too."""


@dataclass(slots=True)
class _Question:
    """A control operation under way."""

    done: trio.Event = field(default_factory=trio.Event)
    reply: dict[str, Any] | GranvilleError | None = None

    def settle(self, reply: dict[str, Any] | GranvilleError) -> None:
        self.reply = reply
        self.done.set()


class Link(ABC):
    """`attended` runs its `read` and `write` beside a body."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._outbox, self._unsent = trio.open_memory_channel[bytes](OUTBOX_MESSAGES)
        self._questions: dict[str | int, _Question] = {}
        self._rids = itertools.count(1)
        self._lost: GranvilleError | None = None

    @abstractmethod
    def dispatch(self, value: object) -> None:
        """A message has come. Raises GranvilleError when it is the last word on the connection."""

    @abstractmethod
    def drop(self, lost: GranvilleError) -> None:
        """Nothing more will come: tell everyone who waits for it."""

    @abstractmethod
    async def wind_up(self, lost: GranvilleError) -> None:
        """What is left to do after that."""

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The reply to a control operation, matched by its `rid`. Raises the error that it is."""
        rid = next(self._rids)
        waiting = self._questions[rid] = _Question()
        try:
            await self.send(msgspec.msgpack.encode({**question, "rid": rid}))
            await waiting.done.wait()
        finally:
            del self._questions[rid]
        if isinstance(waiting.reply, GranvilleError):
            raise waiting.reply
        assert waiting.reply is not None
        return waiting.reply

    def settle(self, rid: object, reply: dict[str, Any] | GranvilleError) -> None:
        """The reply to a question; nobody may wait for it any longer."""
        waiting = self._questions.get(rid) if isinstance(rid, str | int) else None
        if waiting is not None:
            waiting.settle(reply)

    def settle_error(self, reply: ErrorReply) -> bool:
        """Whether an error was the reply to a question. Raises one that is said of the connection as a whole, and the
        last word on it: the daemon reads no further."""
        if reply.rid is not UNSET:
            self.settle(reply.rid, reply.exception())
            return True
        if reply.id is None:
            raise reply.exception()
        return False

    async def send(self, message: bytes) -> None:
        try:
            if self._lost is not None:
                raise self._lost
            await self._outbox.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._lost or ConnectionLost("the daemon closed the connection") from None

    async def write(self) -> None:
        """Everything that is sent, one whole message after another: a cancelled sender cannot cut one.

        Started by: whoever opens the connection. Ends when: it breaks, of which the reader tells.
        Cancelled by: the end of the opener's body.
        """
        with self._unsent:
            async for message in self._unsent:
                try:
                    await self._stream.send_all(message)
                except trio.BrokenResourceError:
                    return

    async def read(self) -> None:
        """Everything that is received, given to whoever waits for it.

        Started by: whoever opens the connection. Ends when: the daemon closes, or sends what is no message.
        Cancelled by: the end of the opener's body.
        """
        lost: GranvilleError = ConnectionLost("this client has been closed")
        frames = FrameReader(max_message_bytes=MAX_REPLY_BYTES)
        try:
            async for data in self._stream:
                for value in frames.feed(data):
                    self.dispatch(value)
            frames.close()
            lost = ConnectionLost("the daemon closed the connection before it had answered")
        except trio.BrokenResourceError as error:
            lost = ConnectionLost(f"the connection to the daemon broke: {error.__cause__ or error}")
        except GranvilleError as error:
            lost = error
        finally:
            self._lost = lost
            self._outbox.close()
            for waiting in self._questions.values():
                waiting.settle(lost)
            self.drop(lost)
        await self.wind_up(lost)


L = TypeVar("L", bound=Link)


@asynccontextmanager
async def attended(link: L) -> AsyncIterator[L]:
    """A link whose messages come and go while the body runs; its stream is closed at the end."""
    async with link._stream, Background() as nursery:
        nursery.start_soon(link.read)
        nursery.start_soon(link.write)
        yield link
