"""The bytes that wait to go to one client.

What a turn of work brings is written at its end, at once where the socket has room: one system call a client, and no
switch of tasks. Only what the socket does not take is left to the connection's writer task.
"""

from __future__ import annotations

import os
from types import TracebackType

import trio

WRITE_BYTES = 16_384
"""What a slow client has to take within `write_stall_s`."""
HIGH_WATER_BYTES = 262_144
"""With more than this unsent, no further request is read and deltas are held back and merged."""


class Cork:
    """`with cork:` is a turn of work; what is pushed in it goes out at its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._touched: list[Outbox] = []

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            touched, self._touched = self._touched, []
            for outbox in touched:
                outbox.write_now()

    def touch(self, outbox: Outbox) -> bool:
        """Whether the outbox is written at the end of this turn; outside of one it has to see to itself."""
        if self._depth:
            self._touched.append(outbox)
        return self._depth > 0


class Outbox:
    """`fd` is the stream's own non-blocking socket, None for a stream without one."""

    def __init__(self, stream: trio.abc.SendStream, fd: int | None, cork: Cork, stall_s: float) -> None:
        self._stream = stream
        self._fd = fd
        self._cork = cork
        self._stall_s = stall_s
        self._parts: list[bytes] = []
        self._unsent_bytes = 0
        self._filled = trio.Event()
        self._drained = trio.Event()
        self._task_is_writing = False
        self._closing = False
        self._gone = False

    @property
    def congested(self) -> bool:
        return self._unsent_bytes > HIGH_WATER_BYTES

    def push(self, message: bytes) -> None:
        """Send this, after what was pushed before. Nothing happens once the client has gone."""
        if self._gone:
            return
        self._parts.append(message)
        self._unsent_bytes += len(message)
        if len(self._parts) == 1 and not self._cork.touch(self):
            self._filled.set()

    def write_now(self) -> None:
        """Give the socket what it takes; the writer task gets the rest, and any error."""
        if self._gone or self._task_is_writing or not self._parts:
            return
        if self._fd is not None:
            data = b"".join(self._parts)
            try:
                sent = os.write(self._fd, data)
            except OSError:
                sent = 0
            self._unsent_bytes -= sent
            self._parts = [data[sent:]] if sent < len(data) else []
        if self._parts:
            self._filled.set()

    def close(self) -> None:
        """The writer task ends when everything is sent."""
        self._closing = True
        self._filled.set()

    def abandon(self) -> None:
        """The client has gone, and its file descriptor may be another's soon."""
        self._gone = True
        self._parts.clear()

    async def room(self) -> None:
        while self.congested:
            self._drained = trio.Event()
            await self._drained.wait()

    async def drain(self) -> bool:
        """Wait for something to send and send it; False when there will be no more. Raises BrokenResourceError for a
        client that is gone, or takes nothing for `stall_s`."""
        await self._filled.wait()
        self._filled = trio.Event()
        self._task_is_writing = True
        try:
            while self._parts:
                data = b"".join(self._parts)
                self._parts.clear()
                for start in range(0, len(data), WRITE_BYTES):
                    await self._send(data[start : start + WRITE_BYTES])
        finally:
            self._task_is_writing = False
        self._drained.set()
        return not self._closing

    async def _send(self, data: bytes) -> None:
        with trio.move_on_after(self._stall_s) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError(f"the client took nothing for {self._stall_s:g} s")
        self._unsent_bytes -= len(data)
