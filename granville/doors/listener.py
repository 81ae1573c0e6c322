"""Accepts connections, a bounded number at once, and lets them go at the daemon's end."""

from __future__ import annotations

from collections.abc import Callable

import trio

from granville.doors.bounds import Bounds, Tally
from granville.doors.conversation import Conversation
from granville.doors.peer import Peer
from granville.errors import QueueFull
from granville.wire.messages import encode, error_reply


class Listener:
    def __init__(self, bounds: Bounds, tally: Tally, greet: Callable[[trio.SocketStream, Peer], Conversation]) -> None:
        self._bounds = bounds
        self._tally = tally
        self._greet = greet
        self._open: set[Conversation] = set()
        self._one_closed = trio.Event()
        self._accepting = trio.CancelScope()

    async def run(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Started by: the daemon. Ends when: `hang_up` was called and all have gone. Cancelled by: the daemon's end."""
        # A nursery for the connections, which are let go after the doors have closed.
        async with trio.open_nursery() as connections:
            with self._accepting:
                await trio.serve_listeners(
                    self._handle, listeners, handler_nursery=connections, task_status=task_status
                )

    def hang_up(self) -> None:
        """Let nobody in any more; send every client what is due to it and close."""
        self._accepting.cancel()
        for connection in self._open:
            connection.hang_up()

    async def all_closed(self) -> None:
        while self._open:
            self._one_closed = trio.Event()
            await self._one_closed.wait()

    async def _handle(self, stream: trio.SocketStream) -> None:
        """Started by: an accepted connection. Ends when: the connection does. Cancelled by: the daemon's end."""
        limit = self._bounds.max_connections
        if len(self._open) >= limit:
            await self._turn_away(stream, limit)
            return
        connection = self._greet(stream, Peer(stream.socket))
        self._open.add(connection)
        self._tally.connections = len(self._open)
        if self._accepting.cancel_called:  # it came in the very moment of `hang_up`
            connection.hang_up()
        try:
            await connection.run()
        finally:
            self._open.discard(connection)
            self._one_closed.set()
            self._tally.connections = len(self._open)

    async def _turn_away(self, stream: trio.SocketStream, limit: int) -> None:
        self._tally.rejected += 1
        refusal = QueueFull(f"{limit} connections are open and there may be no more", retry_after_ms=1000)
        with trio.move_on_after(1):
            try:
                await stream.send_all(encode(error_reply(None, refusal)))
            except trio.BrokenResourceError:
                return
