"""One job's messages on their way to whoever waits for them: ACK, deltas, and the one end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from granville.errors import Cancelled, Conflict, GranvilleError
from granville.wire.framing import MAX_REPLY_BYTES
from granville.wire.messages import Ack, Delta, ErrorReply, Result

log = logging.getLogger(__name__)

MAX_UNREAD_CHARS = 4 << 20
"""Text that one answer holds for its reader. A reader further behind loses the answer, and no other does."""


class Answer:
    """The answer to one request, as it arrives. Iterate it for the text; deltas that wait are joined.

    Only a request with `stream=True` brings text before its end; `result.text` is the whole in either case. An answer
    that is spoken has sound instead: `sound()` iterates that.
    """

    def __init__(self, id: str, *, by_callback: bool = False) -> None:
        self.id = id
        self.by_callback = by_callback
        """What follows the ACK comes on a connection of its own."""
        self.is_accepted = False
        """The daemon has the request: an ACK has come, or what only follows one."""
        self.is_live = True
        """The daemon has not said that it is done with the job."""
        self._unread: list[str] = []
        self._unread_chars = 0
        self._unheard: list[bytes] = []
        self._unheard_bytes = 0
        self._end: Result | GranvilleError | None = None
        self._news = trio.lowlevel.ParkingLot()

    @property
    def ended(self) -> bool:
        return self._end is not None

    @property
    def result(self) -> Result:
        """The result of an answer that has ended. Raises the error that it ended with instead."""
        if self._end is None:
            raise RuntimeError(f"the answer to {self.id} has not ended; iterate it to its end or await finish()")
        if isinstance(self._end, GranvilleError):
            raise self._end
        return self._end

    async def accepted(self) -> None:
        """Wait for the ACK. Raises the error if the request is refused."""
        await trio.lowlevel.checkpoint()
        while not self.is_accepted and self._end is None:
            await self._news.park()
        if not self.is_accepted:
            self.result  # noqa: B018 - raises what the daemon refused with

    async def finish(self) -> Result:
        """Wait for the end, passing over the text. Raises the error that the job ended with."""
        await trio.lowlevel.checkpoint()
        while self._end is None:
            self._take()
            self._take_sound()
            await self._news.park()
        return self.result

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> str:
        await trio.lowlevel.checkpoint()
        while not self._unread:
            if self._end is not None:
                self.result  # noqa: B018 - an answer that failed raises here, after the text that came before
                raise StopAsyncIteration
            self._take_sound()
            await self._news.park()
        return self._take()

    def sound(self) -> AsyncIterator[bytes]:
        """A spoken answer's sound as it is made; what waits is joined. All of it together is a WAV stream, whose first
        44 bytes are a header that leaves its length open. Raises the error that the job ended with."""
        return _Sound(self)

    async def _next_sound(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._unheard:
            if self._end is not None:
                self.result  # noqa: B018 - an answer that failed raises here, after the sound that came before
                raise StopAsyncIteration
            await self._news.park()
        return self._take_sound()

    def receive(self, message: Ack | Delta | Result | ErrorReply) -> None:
        """A message of this job. The first end counts; what comes after it is dropped."""
        if isinstance(message, Result | ErrorReply):
            self.is_live = False
        if self._end is not None:
            return
        if isinstance(message, ErrorReply):
            self.fail(message.exception())
            return
        self.is_accepted = True
        if isinstance(message, Delta):
            self._add(message.delta)
        elif isinstance(message, Result):
            self._end = message
        self._news.unpark_all()

    def fail(self, error: GranvilleError) -> None:
        """End the answer from this side."""
        if self._end is None:
            self._end = error
            self._news.unpark_all()

    def _add(self, delta: str | bytes) -> None:
        if isinstance(delta, bytes):
            self._unheard_bytes += len(delta)
            self._unheard.append(delta)
            if self._unheard_bytes > MAX_REPLY_BYTES:  # more than an answer may have
                self.fail(Cancelled(f"the answer was not read: more than {MAX_REPLY_BYTES} bytes wait"))
            return
        self._unread_chars += len(delta)
        if self._unread_chars > MAX_UNREAD_CHARS:
            self.fail(Cancelled(f"the answer was not read: more than {MAX_UNREAD_CHARS} characters wait"))
            return
        self._unread.append(delta)

    def _take(self) -> str:
        text = "".join(self._unread)
        self._unread.clear()
        self._unread_chars = 0
        return text

    def _take_sound(self) -> bytes:
        sound = b"".join(self._unheard)
        self._unheard.clear()
        self._unheard_bytes = 0
        return sound


class _Sound:
    """No generator: whoever stops to listen leaves nothing behind to be closed."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __aiter__(self) -> _Sound:
        return self

    async def __anext__(self) -> bytes:
        return await self._answer._next_sound()


class Answers:
    """The answers that are waited for, by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Answer] = {}

    @contextmanager
    def expect(self, answer: Answer) -> Iterator[None]:
        """Route the messages of its id to an answer while the body runs. Raises Conflict for an id in use."""
        if answer.id in self._by_id:
            raise Conflict(f"id: {answer.id!r} is the id of another request that has not been answered")
        self._by_id[answer.id] = answer
        try:
            yield
        finally:
            del self._by_id[answer.id]

    def dispatch(self, message: Ack | Delta | Result | ErrorReply) -> None:
        answer = self._by_id.get(message.id or "")
        if answer is None:
            # Late words of a job that was given up: its cancellation and its result may cross on the way.
            log.debug("message for no one id=%s kind=%s", message.id, type(message).__name__)
        else:
            answer.receive(message)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._by_id.values())
