"""One client's connection, whatever is spoken of on it: MessagePack maps in, replies out, in any number and any order.

What is not MessagePack, is too large, or is begun and never finished ends the reading with an error reply; what is
still due is sent all the same. A client that does not read is not read from; one that is gone is told apart from one
that has only shut down its sending side.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

import trio

from granville.doors.bounds import Bounds
from granville.doors.outbox import Cork, Outbox
from granville.doors.peer import Peer
from granville.errors import FramingLost, GranvilleError, TooLarge
from granville.wire.framing import FrameReader

log = logging.getLogger(__name__)

READ_BYTES = 65_536
TURN_MESSAGES = 64
"""Of one client, handled before the others get their turn."""
FLOOD_PAUSE_S = 0.005
"""After a whole turn that brought no work: a client that floods the daemon with requests it refuses is read more
slowly, 12 800 a second, and the daemon keeps its cores."""
LINGER_S = 2.0
"""How long a client may go on sending after its stream became unreadable."""


class Conversation(ABC):
    """What a daemon makes of the messages, a class below this says."""

    def __init__(self, stream: trio.abc.Stream, peer: Peer, bounds: Bounds, cork: Cork) -> None:
        self._stream = stream
        self._peer = peer
        self._bounds = bounds
        self._cork = cork
        fd = None if peer.sock is None else peer.sock.fileno()
        self._outbox = Outbox(stream, fd, cork, bounds.write_stall_s)
        self._all_answered = trio.Event()
        self._reading = trio.CancelScope()
        self._accepted = False
        """Whether the turn brought work."""

    @abstractmethod
    def handle(self, value: object, size: int) -> None:
        """One message of `size` bytes, answered at once or accepted. Does not raise."""

    @abstractmethod
    def refuse(self, id: str | None, error: GranvilleError, rid: str | int | None = None) -> None:
        """Send the error, and count it."""

    @abstractmethod
    def is_due(self) -> bool:
        """Whether answers are still to come on this connection; `settled` is called when the last of them has."""

    @abstractmethod
    def abandon(self) -> None:
        """The client has gone: nothing more is due to it here."""

    @abstractmethod
    def release(self) -> None:
        """There is room again: push what was held back while `congested`, until it is so once more."""

    def max_message_bytes(self) -> int:
        """Of a message that begins now."""
        return self._bounds.max_request_bytes

    async def run(self) -> None:
        """Started by: the listener. Ends when: the client is gone, or has said all and got its answers. Cancelled
        by: the daemon's end. Never raises for anything that a client does."""
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
            self.abandon()

    def hang_up(self) -> None:
        """Read no more; send what is there and close."""
        self._reading.cancel()

    def push(self, message: bytes) -> None:
        self._outbox.push(message)

    def settled(self) -> None:
        """The last of what was due is pushed."""
        self._all_answered.set()

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
            self.refuse(None, error)
        # Whichever comes first: the last answer, or the client's end.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_until_hung_up, nursery.cancel_scope, lost is None)
            if lost is not None:
                await self._discard()
            while self.is_due():
                self._all_answered = trio.Event()
                await self._all_answered.wait()
            nursery.cancel_scope.cancel()

    async def _wait_until_hung_up(self, scope: trio.CancelScope, at_end_of_file: bool) -> None:
        """Started by: `_serve`, when reading is over. Ends when: the client has gone. Cancelled by: the last answer."""
        await self._peer.hung_up(at_end_of_file=at_end_of_file)
        self.abandon()
        scope.cancel()

    async def _discard(self) -> None:
        """Take what a client still sends after its stream became unreadable, so that it gets to read why."""
        with trio.move_on_after(LINGER_S):
            while await self._stream.receive_some(READ_BYTES):
                pass

    async def _read(self) -> None:
        """Until end of file. Raises FramingLost or TooLarge when nothing more can be read."""
        reader = FrameReader(self.max_message_bytes())
        part_since = 0.0
        while True:
            if reader.pending:
                with trio.move_on_at(part_since + self._bounds.part_message_s) as scope:
                    data = await self._stream.receive_some(READ_BYTES)
                if scope.cancelled_caught:
                    raise FramingLost(
                        f"a message was begun and not finished within {self._bounds.part_message_s:g} s; "
                        f"{reader.pending} bytes of it came"
                    )
            else:
                data = await self._stream.receive_some(READ_BYTES)
                part_since = trio.current_time()
            if not data:
                reader.close()
                return
            reader.allow(self.max_message_bytes())
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
        with self._cork:
            for value in islice(values, TURN_MESSAGES):
                self.handle(value, reader.last_bytes)
                handled += 1
        return handled

    async def _write(self) -> None:
        """Started by: `run`. Ends when: reading has ended and everything is sent. Cancelled by: a client that is
        gone, or takes nothing for `write_stall_s`, which counts as gone."""
        while await self._outbox.drain():
            self.release()
